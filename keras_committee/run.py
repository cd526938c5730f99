"""What lies in a run folder, what is finished there, and what was it trained with?"""

import contextlib
import dataclasses
import difflib
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from keras_committee.errors import IncompleteError, RecipeError, RunError
from keras_committee.files import now, owned, write_file, write_json, writing
from keras_committee.member_dir import MemberFolder
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile

_RECORD = ("recipe.py", "knobs.json", "environment.json")  # written in this order: the last one marks a whole run
_SHOWN = 10  # changed lines of a recipe that are listed
_SECONDS_TO_RECORD = 30.0  # for another job that shares the folder to write its record


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder. `Run.create` makes one or continues it, `Run.open` reads a finished or unfinished one."""

    path: Path

    @classmethod
    def create(
        cls,
        path: str | Path,
        recipe_file: RecipeFile,
        knobs: dict[str, Any],
        *,
        smoke: bool = False,
        command: str,
        allow_change: bool = False,
        shared: bool = False,
    ) -> Self:
        """Records recipe, knobs and environment in a new folder `path`, or checks that they are those of the old one.

        More members, another `data_dir` (the data themselves are compared where a member goes on), and comments in the
        recipe change no result: they are recorded in place of the old ones. Any other change needs `allow_change`.
        With `shared` others may be at work in the folder.

        Raises:
            RunError: If the folder belongs to another recipe or other knobs, or is in use.
            ResourceError: If the folder cannot be written.
        """
        run = cls(Path(path))
        with writing(run.path):
            run.path.parent.mkdir(parents=True, exist_ok=True)
            run.path.mkdir(mode=0o700, exist_ok=True)
        record = owned(run.path / ".record.lock", f"the record of {run.path}", patience=_SECONDS_TO_RECORD)
        with run.lock(shared=shared), record:
            run._begin(recipe_file, knobs, smoke, command)
            run._continue(recipe_file, knobs, smoke, allow_change)
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The run in folder `path`, which must be one. Raises RunError."""
        run = cls(Path(path))
        if missing := run._missing():
            raise RunError(f"{path} is not a run folder: {_instead(run.path, missing)}")
        return run

    def recipe_file(self) -> RecipeFile:
        """The recipe as it was when the run began."""
        return RecipeFile.read(self.path / "recipe.py", name=self.environment()["recipe"])

    def knobs(self) -> dict[str, Any]:
        defaults = self.recipe_file().defaults
        knobs = self._read_json("knobs.json")
        return {
            knob: _as_tuples(value) if isinstance(defaults.get(knob), tuple) else value for knob, value in knobs.items()
        }

    def recipe(self) -> Recipe:
        """What the recipe builds with the knobs of the run, cut down for a smoke run. Executes the recipe."""
        return self.recipe_file().build(self.knobs(), smoke=self.smoke)

    def environment(self) -> dict[str, Any]:
        """Versions, machine, command, seed and smoke flag of the first start."""
        return self._read_json("environment.json")

    @property
    def smoke(self) -> bool:
        return self.environment()["smoke"]

    def changed_versions(self) -> list[str]:
        """`"tensorflow 2.20.0 -> 2.21.0"` for each package that is another one than at the first start."""
        return list(_differences(self.environment()["versions"], versions()).values())

    def member(self, index: int) -> MemberFolder:
        return MemberFolder(self.path, index)

    def log(self, index: int) -> Path:
        """The file that the process of member `index` writes its output to."""
        return self.path / "logs" / f"member-{index:02d}.log"

    def finished_members(self) -> list[int]:
        """The indices of the finished members, ascending."""
        names = [folder.name for folder in (self.path / "members").glob("*")]
        return sorted(int(name) for name in names if name.isdecimal() and self.member(int(name)).finished)

    def members_at_hand(self, wanted: int, min_members: int | None = None) -> list[int]:
        """The indices of the finished ones of the members 0 to `wanted - 1`.

        Raises:
            IncompleteError: If they are not all, and fewer than `min_members`.
        """
        finished = [index for index in self.finished_members() if index < wanted]
        missing = sorted(set(range(wanted)) - set(finished))
        if missing and (min_members is None or len(finished) < min_members):
            go_on = f"  Or take those that there are: --min-members {len(finished)}" if finished else ""
            raise IncompleteError(
                f"{self.path} has {len(finished)} of {wanted} members;"
                f" not trained yet: {', '.join(map(str, missing))}.\n"
                f"  Finish them with the command of the run: {self.environment()['command']}\n{go_on}".rstrip()
            )
        return finished

    @contextlib.contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[None]:
        """Owns the folder; with `shared` beside others who share it, each with members of its own.

        Raises:
            InUseError: If another process owns it.
            ResourceError: If it cannot be written, or its file system has no locks.
        """
        with owned(self.path / "lock", f"run folder {self.path}", shared=shared):
            yield

    def trained_classes(self) -> tuple[str, ...] | None:
        """The names of the classes that the members were trained for; None where no training began here."""
        return next((tuple(event["classes"]) for event in self.events() if "classes" in event), None)

    def trained_framing(self) -> dict[str, Any] | None:
        """How the data that the members were trained for frame an image; None where it is not told, in older runs."""
        return next((event["framing"] for event in self.events() if "framing" in event), None)

    def require_classes(self, classes: Sequence[str]) -> None:
        """Raises RecipeError unless `classes` are those, in that order, that the members were trained for."""
        trained = self.trained_classes() or classes
        changed = _differences(dict(enumerate(trained)), dict(enumerate(classes)))
        if changed:
            raise RecipeError(
                f"the data have other classes than the members of {self.path} were trained for: "
                f"class {next(iter(changed.values()))}.\n  Bring the classes back into their old order."
            )

    def journal(self, event: str, **fields: Any) -> None:
        """Appends one event. It is on the disk when this returns; call it by an owner of the lock only."""
        line = json.dumps({"time": now(), "event": event, **fields}, allow_nan=False) + "\n"
        path = self.path / "journal.jsonl"
        with writing(path), open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # from others who share the folder, for this moment
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # what a killed process left of its last line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """The journal in order. A last line without its end was never finished and does not count."""
        path = self.path / "journal.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}. Move it away to go on without it.") from error

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / name} cannot be read: {error}. Train into another --run folder.") from error

    def _missing(self) -> list[str]:
        return [name for name in _RECORD if not (self.path / name).is_file()]

    def _require_empty(self) -> None:
        foreign = sorted(
            {file.name for file in self.path.iterdir() if not file.name.startswith(".")} - {"lock", *_RECORD}
        )
        if foreign:
            raise RunError(
                f"{self.path} is not a run folder and not empty: it has {foreign[0]}. Name another --run folder."
            )

    def _begin(self, recipe_file: RecipeFile, knobs: dict[str, Any], smoke: bool, command: str) -> None:
        if not self._missing():
            return
        self._require_empty()
        write_file(self.path / "recipe.py", recipe_file.source.encode())
        write_json(self.path / "knobs.json", knobs)
        record = {"recipe": recipe_file.name, "smoke": smoke, "seed": knobs.get("seed"), "command": command}
        write_json(self.path / "environment.json", record | environment())

    def _continue(self, recipe_file: RecipeFile, knobs: dict[str, Any], smoke: bool, allow_change: bool) -> None:
        """Go on with the new recipe and knobs, if they give what the old ones gave or change is allowed."""
        # Knobs are compared as JSON keeps them, where a tuple is a list.
        old, new = self._read_json("knobs.json"), json.loads(json.dumps(knobs))
        changes = _differences({**old, "--smoke": self.smoke}, {**new, "--smoke": smoke})
        harmless = [key for key in changes if _is_harmless(key, old, new)]
        lines = _changed_lines(self.recipe_file().source, recipe_file.source)
        speaks_only = recipe_file.does_as(self.recipe_file())
        grave = [text for key, text in changes.items() if key not in harmless] + ([] if speaks_only else lines)
        if grave and (not allow_change or smoke != self.smoke):
            self._refuse(grave, recipe_file, may_change=smoke == self.smoke)
        if changes or lines:
            self.journal("changed", changes=[*changes.values(), *lines])
            write_file(self.path / "recipe.py", recipe_file.source.encode())
            write_json(self.path / "knobs.json", knobs)

    def _refuse(self, changes: list[str], recipe_file: RecipeFile, may_change: bool) -> None:
        listing = "\n  ".join(changes)
        another = shlex.quote(f"{self.path}-2")
        change = "\nor train what is missing with the change, and keep what is finished: --allow-change."
        raise RunError(
            f"{self.path} was trained with something else:\n  {listing}\n"
            f"Nothing was touched. Keep both: keras-committee train {recipe_file.path} --run {another} ..."
            f"{change if may_change else ''}"
        )


def _instead(path: Path, missing: list[str]) -> str:
    """What there is at `path` in place of a run, and which command makes one."""
    if path.is_file():
        return f"it is a file. `keras-committee train {path if path.suffix == '.py' else 'RECIPE'}` makes a run."
    if path.is_dir():
        what = f"it has no {', '.join(missing)}."
    else:
        runs = [record.parent.name for record in path.parent.glob(f"*/{_RECORD[-1]}")]
        near = [
            f" Did you mean {str(path.parent / name)!r}?" for name in difflib.get_close_matches(path.name, runs, n=1)
        ]
        what = f"there is no such folder.{''.join(near)}"
    return f"{what} `keras-committee train RECIPE --run {path}` makes one."


def _differences(old: dict, new: dict) -> dict[Any, str]:
    """`"learning_rate 0.1 -> 0.05"` for each key whose value is another one."""
    triples = [(key, old.get(key, "absent"), new.get(key, "absent")) for key in {**old, **new}]
    return {key: f"{key} {before} -> {after}" for key, before, after in triples if before != after}


def _is_harmless(knob: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether the members that there are stay what they are: each follows from its own seed, and data may be moved."""
    counts = isinstance(old.get(knob), int) and isinstance(new.get(knob), int)
    return knob == "data_dir" or (knob == "members" and counts and new[knob] > old[knob])


def _changed_lines(old: str, new: str) -> list[str]:
    changes = list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0))[2:]
    lines = [line for line in changes if not line.startswith("@@")]
    rest = [f"... and {len(lines) - _SHOWN} more lines"] if len(lines) > _SHOWN else []
    return [f"recipe {line}" for line in lines[:_SHOWN]] + rest


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(part) for part in value) if isinstance(value, list) else value


def environment() -> dict[str, Any]:
    """Versions, commit, platform and cores, as a run folder records them."""
    return {"versions": versions(), "commit": _commit(), "platform": platform.platform(), "cpus": os.cpu_count()}


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that results depend on; None for one that is not installed."""
    packages = ("keras-committee", "keras", "tensorflow", "numpy")
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit checked out in the current folder, or None where there is none."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
