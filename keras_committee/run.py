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
from keras_committee.files import file_lock, translate_os_errors, utc_timestamp, write_file, write_json
from keras_committee.member_dir import MemberDir
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile

_RECORD_FILES = (
    "recipe.py",
    "parameters.json",
    "environment.json",
)  # written in this order: the last one marks a whole run
_MAX_LISTED_LINES = 10  # changed lines of a recipe that are listed
_RECORD_LOCK_TIMEOUT = 30.0  # for another job that shares the folder to write its record


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder. `Run.create` makes one or continues it, `Run.open` reads a finished or unfinished one."""

    path: Path

    @classmethod
    def create(
        cls,
        path: str | Path,
        recipe_file: RecipeFile,
        parameters: dict[str, Any],
        *,
        smoke: bool = False,
        command: str,
        allow_config_change: bool = False,
        shared: bool = False,
    ) -> Self:
        """Records recipe, knobs and environment in a new folder `path`, or checks that they are those of the old one.

        More members, another `data_dir` (the data themselves are compared where a member goes on), and comments in the
        recipe change no result: they are recorded in place of the old ones. Any other change needs `allow_config_change`.
        With `shared` others may be at work in the folder.

        Raises:
            RunError: If the folder belongs to another recipe or other knobs, or is in use.
            ResourceError: If the folder cannot be written.
        """
        run = cls(Path(path))
        with translate_os_errors(run.path):
            run.path.parent.mkdir(parents=True, exist_ok=True)
            run.path.mkdir(mode=0o700, exist_ok=True)
        record_lock = file_lock(run.path / ".record.lock", f"the record of {run.path}", timeout=_RECORD_LOCK_TIMEOUT)
        with run.lock(shared=shared), record_lock:
            run._create(recipe_file, parameters, smoke, command)
            run._resume(recipe_file, parameters, smoke, allow_config_change)
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The run in folder `path`, which must be one. Raises RunError."""
        run = cls(Path(path))
        if missing := run._missing_files():
            raise RunError(f"{path} is not a run folder: {_suggestion(run.path, missing)}")
        return run

    def recipe_file(self) -> RecipeFile:
        """The recipe as it was when the run began."""
        return RecipeFile.read(self.path / "recipe.py", name=self.environment()["recipe"])

    def parameters(self) -> dict[str, Any]:
        defaults = self.recipe_file().defaults
        parameters = self._read_json("parameters.json")
        return {
            name: _to_tuples(value) if isinstance(defaults.get(name), tuple) else value
            for name, value in parameters.items()
        }

    def recipe(self) -> Recipe:
        """What the recipe builds with the knobs of the run, cut down for a smoke run. Executes the recipe."""
        return self.recipe_file().build(self.parameters(), smoke=self.smoke)

    def environment(self) -> dict[str, Any]:
        """Versions, machine, command, seed and smoke flag of the first start."""
        return self._read_json("environment.json")

    @property
    def smoke(self) -> bool:
        return self.environment()["smoke"]

    def changed_versions(self) -> list[str]:
        """`"tensorflow 2.20.0 -> 2.21.0"` for each package that is another one than at the first start."""
        return list(_differences(self.environment()["versions"], versions()).values())

    def member(self, index: int) -> MemberDir:
        return MemberDir(self.path, index)

    def log_path(self, index: int) -> Path:
        """The file that the process of member `index` writes its output to."""
        return self.path / "logs" / f"member-{index:02d}.log"

    def finished_members(self) -> list[int]:
        """The indices of the finished members, ascending."""
        names = [folder.name for folder in (self.path / "members").glob("*")]
        return sorted(int(name) for name in names if name.isdecimal() and self.member(int(name)).finished)

    def available_members(self, count: int, min_members: int | None = None) -> list[int]:
        """The indices of the finished ones of the members 0 to `wanted - 1`.

        Raises:
            IncompleteError: If they are not all, and fewer than `min_members`.
        """
        finished = [index for index in self.finished_members() if index < count]
        missing = sorted(set(range(count)) - set(finished))
        if missing and (min_members is None or len(finished) < min_members):
            alternative = f"  Or take those that there are: --allow-incomplete {len(finished)}" if finished else ""
            raise IncompleteError(
                f"{self.path} has {len(finished)} of {count} members;"
                f" not trained yet: {', '.join(map(str, missing))}.\n"
                f"  Finish them with the command of the run: {self.environment()['command']}\n{alternative}".rstrip()
            )
        return finished

    @contextlib.contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[None]:
        """Owns the folder; with `shared` beside others who share it, each with members of its own.

        Raises:
            InUseError: If another process owns it.
            ResourceError: If it cannot be written, or its file system has no locks.
        """
        with file_lock(self.path / "lock", f"run folder {self.path}", shared=shared):
            yield

    def trained_classes(self) -> tuple[str, ...] | None:
        """The names of the classes that the members were trained for; None where no training began here."""
        return next((tuple(event["classes"]) for event in self.events() if "classes" in event), None)

    def trained_transform(self) -> dict[str, Any] | None:
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

    def append_event(self, event: str, **fields: Any) -> None:
        """Appends one event. It is on the disk when this returns; call it by an owner of the lock only."""
        line = json.dumps({"time": utc_timestamp(), "event": event, **fields}, allow_nan=False) + "\n"
        path = self.path / "journal.jsonl"
        with translate_os_errors(path), open(path, "a+b") as file:
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

    def _missing_files(self) -> list[str]:
        return [name for name in _RECORD_FILES if not (self.path / name).is_file()]

    def _require_empty(self) -> None:
        unexpected = sorted(
            {file.name for file in self.path.iterdir() if not file.name.startswith(".")} - {"lock", *_RECORD_FILES}
        )
        if unexpected:
            raise RunError(
                f"{self.path} is not a run folder and not empty: it has {unexpected[0]}. Name another --run folder."
            )

    def _create(self, recipe_file: RecipeFile, parameters: dict[str, Any], smoke: bool, command: str) -> None:
        if not self._missing_files():
            return
        self._require_empty()
        write_file(self.path / "recipe.py", recipe_file.source.encode())
        write_json(self.path / "parameters.json", parameters)
        record = {"recipe": recipe_file.name, "smoke": smoke, "seed": parameters.get("seed"), "command": command}
        write_json(self.path / "environment.json", record | collect_environment())

    def _resume(
        self, recipe_file: RecipeFile, parameters: dict[str, Any], smoke: bool, allow_config_change: bool
    ) -> None:
        """Go on with the new recipe and knobs, if they give what the old ones gave or change is allowed."""
        # Knobs are compared as JSON keeps them, where a tuple is a list.
        old, new = self._read_json("parameters.json"), json.loads(json.dumps(parameters))
        changes = _differences({**old, "--smoke": self.smoke}, {**new, "--smoke": smoke})
        ignorable = [key for key in changes if _is_ignorable_change(key, old, new)]
        changed_lines = _changed_lines(self.recipe_file().source, recipe_file.source)
        same_program = recipe_file.same_program_as(self.recipe_file())
        blocking = [text for key, text in changes.items() if key not in ignorable] + (
            [] if same_program else changed_lines
        )
        if blocking and (not allow_config_change or smoke != self.smoke):
            self._raise_mismatch(blocking, recipe_file, can_allow=smoke == self.smoke)
        if changes or changed_lines:
            self.append_event("changed", changes=[*changes.values(), *changed_lines])
            write_file(self.path / "recipe.py", recipe_file.source.encode())
            write_json(self.path / "parameters.json", parameters)

    def _raise_mismatch(self, changes: list[str], recipe_file: RecipeFile, can_allow: bool) -> None:
        listing = "\n  ".join(changes)
        other_path = shlex.quote(f"{self.path}-2")
        allow_hint = "\nor train what is missing with the change, and keep what is finished: --allow-config-change."
        raise RunError(
            f"{self.path} was trained with something else:\n  {listing}\n"
            f"Nothing was touched. Keep both: keras-committee train {recipe_file.path} --run {other_path} ..."
            f"{allow_hint if can_allow else ''}"
        )


def _suggestion(path: Path, missing: list[str]) -> str:
    """What there is at `path` in place of a run, and which command makes one."""
    if path.is_file():
        return f"it is a file. `keras-committee train {path if path.suffix == '.py' else 'RECIPE'}` makes a run."
    if path.is_dir():
        description = f"it has no {', '.join(missing)}."
    else:
        runs = [record.parent.name for record in path.parent.glob(f"*/{_RECORD_FILES[-1]}")]
        guesses = [
            f" Did you mean {str(path.parent / name)!r}?" for name in difflib.get_close_matches(path.name, runs, n=1)
        ]
        description = f"there is no such folder.{''.join(guesses)}"
    return f"{description} `keras-committee train RECIPE --run {path}` makes one."


def _differences(old: dict, new: dict) -> dict[Any, str]:
    """`"learning_rate 0.1 -> 0.05"` for each key whose value is another one."""
    triples = [(key, old.get(key, "absent"), new.get(key, "absent")) for key in {**old, **new}]
    return {key: f"{key} {before} -> {after}" for key, before, after in triples if before != after}


def _is_ignorable_change(name: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether the members that there are stay what they are: each follows from its own seed, and data may be moved."""
    are_counts = isinstance(old.get(name), int) and isinstance(new.get(name), int)
    return name == "data_dir" or (name == "members" and are_counts and new[name] > old[name])


def _changed_lines(old: str, new: str) -> list[str]:
    changes = list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0))[2:]
    lines = [line for line in changes if not line.startswith("@@")]
    rest = [f"... and {len(lines) - _MAX_LISTED_LINES} more lines"] if len(lines) > _MAX_LISTED_LINES else []
    return [f"recipe {line}" for line in lines[:_MAX_LISTED_LINES]] + rest


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(item) for item in value) if isinstance(value, list) else value


def collect_environment() -> dict[str, Any]:
    """Versions, commit, platform and cores, as a run folder records them."""
    return {"versions": versions(), "commit": _git_commit(), "platform": platform.platform(), "cpus": os.cpu_count()}


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that results depend on; None for one that is not installed."""
    packages = ("keras-committee", "keras", "tensorflow", "numpy")
    return {"python": platform.python_version(), **{package: _package_version(package) for package in packages}}


def _package_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit checked out in the current folder, or None where there is none."""
    try:
        completed = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() or None if completed.returncode == 0 else None
