"""Run folders: the recipe, parameters, environment, journal and members of a training run."""

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
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from keras_committee.errors import IncompleteError, RecipeError, RunError, did_you_mean
from keras_committee.files import file_lock, translate_os_errors, utc_timestamp, write_file, write_json
from keras_committee.member_dir import MemberDir
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile
from keras_committee.recipe_source import MODULES_FOLDER

# Written in this order: a folder with the last one is complete.
_RECORD_FILES = ("recipe.py", "parameters.json", "environment.json")
_RECORD_LOCK_TIMEOUT = 30.0  # seconds; another job that shares the folder holds it while writing these files
_RECORDED_PACKAGES = ("keras-committee", "keras", "tensorflow", "numpy")
_MAX_LISTED_LINES = 10  # changed lines of a recipe in an error message
_TRAINING_END_EVENTS = ("training_finished", "training_stopped", "training_failed")


@contextlib.contextmanager
def open_run(
    recipe: str | Path | RecipeFile,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    path: str | Path | None = None,
    command: str,
    smoke: bool = False,
    allow_config_change: bool = False,
    shared: bool = False,
) -> Iterator[tuple["Run", Recipe]]:
    """Create or continue the run of a recipe, lock its folder, and build the recipe.

    Invalid overrides and a folder of another recipe raise before the recipe is executed, which may import TensorFlow.

    Args:
        recipe: The recipe file.
        overrides: Recipe parameters that differ from their defaults, as for `RecipeFile.resolve`.
        path: The run folder; None is `default_run_path`.
        command: Command line that starts and resumes this run; recorded for error messages.
        smoke: Whether to use the reduced recipe of `Recipe.for_smoke_run`.
        allow_config_change: Whether to continue a run whose recipe or parameters differ.
        shared: Whether other processes may share the folder, each training other members.

    Yields:
        The run and its recipe. The lock is held until the `with` block ends.

    Raises:
        RecipeError: If the recipe or an override is invalid.
        RunError: If the folder belongs to another recipe or other parameters, or is in use.
        ResourceError: If the folder cannot be written.

    Example:
        >>> with open_run("recipes/digits_wrn.py", ["members=2"], command="train") as (run, recipe):
        ...     train_committee(run, recipe)
    """
    recipe_file = recipe if isinstance(recipe, RecipeFile) else RecipeFile.read(recipe)
    parameters = recipe_file.resolve(overrides)
    run = Run.create(
        default_run_path(recipe_file, smoke=smoke) if path is None else path,
        recipe_file,
        parameters,
        smoke=smoke,
        command=command,
        allow_config_change=allow_config_change,
        shared=shared,
    )
    with run.lock(shared=shared):
        yield run, recipe_file.build(parameters, smoke=smoke)


def default_run_path(recipe_file: RecipeFile, *, smoke: bool = False) -> Path:
    """Return `runs/NAME`, or `runs/NAME-smoke` for a smoke run, relative to the current folder."""
    return Path("runs", f"{recipe_file.name}-smoke" if smoke else recipe_file.name)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder. `Run.create` creates or continues it; `Run.open` opens an existing one.

    Attributes:
        path: The folder.
    """

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
        """Record recipe, parameters and environment in a new folder, or check those of an existing one.

        Three changes leave the members the same and are always accepted and recorded: more members, another `data_dir`
        (the data are compared when a member resumes), and other comments or layout of the recipe.

        Args:
            path: The run folder.
            recipe_file: The recipe.
            parameters: All its parameters, as returned by `RecipeFile.resolve`.
            smoke: Whether this is a smoke run.
            command: Command line that starts and resumes this run.
            allow_config_change: Whether to accept other changes, too.
            shared: Whether other processes may be training in the folder.

        Raises:
            RunError: If the folder belongs to another recipe or other parameters, or is in use.
            ResourceError: If the folder cannot be written.
        """
        run = cls(Path(path))
        with translate_os_errors(run.path):
            run.path.parent.mkdir(parents=True, exist_ok=True)
            run.path.mkdir(mode=0o700, exist_ok=True)
        record_lock = file_lock(run.path / ".record.lock", f"the record of {run.path}", timeout=_RECORD_LOCK_TIMEOUT)
        with run.lock(shared=shared), record_lock:
            if run._missing_record_files():
                run._record(recipe_file, parameters, smoke, command)
            else:
                run._update_record(recipe_file, parameters, smoke, allow_config_change)
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing run folder.

        Raises:
            RunError: If `path` is not a run folder.
        """
        run = cls(Path(path))
        if missing := run._missing_record_files():
            raise RunError(f"{path} is not a run folder: {_explain_no_run(run.path, missing)}")
        return run

    def recipe_file(self) -> RecipeFile:
        """Return the recipe file that the run recorded."""
        return RecipeFile.read(self.path / "recipe.py", name=self.environment()["recipe"])

    def parameters(self) -> dict[str, Any]:
        """Return the recipe parameters of the run."""
        defaults = self.recipe_file().defaults
        return {
            name: _to_tuples(value) if isinstance(defaults.get(name), tuple) else value
            for name, value in self._read_json("parameters.json").items()
        }

    def recipe(self) -> Recipe:
        """Execute the recorded recipe file and return the recipe of the run, reduced if it is a smoke run."""
        return self.recipe_file().build(self.parameters(), smoke=self.smoke)

    def environment(self) -> dict[str, Any]:
        """Return versions, machine, command, seed and smoke flag of the first start."""
        return self._read_json("environment.json")

    @property
    def smoke(self) -> bool:
        """Whether this is a smoke run."""
        return self.environment()["smoke"]

    def changed_versions(self) -> list[str]:
        """Return `"tensorflow 2.20.0 -> 2.21.0"` for each package that changed since the first start."""
        return list(_differences(self.environment()["versions"], _versions()).values())

    def member(self, index: int) -> MemberDir:
        """Return the folder of member `index`."""
        return MemberDir(self.path, index)

    def log_path(self, index: int) -> Path:
        """Return the log file of the process that trains member `index`."""
        return self.path / "logs" / f"member-{index:02d}.log"

    def finished_members(self) -> list[int]:
        """Return the indices of the finished members, ascending."""
        names = [folder.name for folder in (self.path / "members").glob("*")]
        return sorted(int(name) for name in names if name.isdecimal() and self.member(int(name)).finished)

    def available_members(self, count: int, min_members: int | None = None) -> list[int]:
        """Return the finished members among the first `count`.

        Args:
            count: Number of members of the committee.
            min_members: Accept an incomplete committee with at least this many members; None requires all.

        Raises:
            IncompleteError: If members are missing, and fewer than `min_members` are finished.
        """
        finished = [index for index in self.finished_members() if index < count]
        missing = sorted(set(range(count)) - set(finished))
        if missing and (min_members is None or len(finished) < min_members):
            message = (
                f"{self.path} has {len(finished)} of {count} members; not trained: {', '.join(map(str, missing))}.\n"
                f"  To resume, run: {self.environment()['command']}"
            )
            if finished:
                message += f"\n  To use the finished members only, add: --allow-incomplete {len(finished)}"
            raise IncompleteError(message)
        return finished

    @contextlib.contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the lock of the folder.

        Args:
            shared: Whether other processes may hold a shared lock, each training other members.

        Raises:
            InUseError: If another process holds the lock.
            ResourceError: If the lock file cannot be written, or its file system does not support locks.
        """
        with file_lock(self.path / "lock", f"run folder {self.path}", shared=shared):
            yield

    def trained_classes(self) -> tuple[str, ...] | None:
        """Return the class names that the members were trained on; None before the first training."""
        return next((tuple(event["classes"]) for event in self.events() if "classes" in event), None)

    def trained_transform(self) -> dict[str, Any] | None:
        """Return the fields of the image transform that the members were trained on; None if it was not recorded."""
        return next((event["transform"] for event in self.events() if "transform" in event), None)

    def require_classes(self, classes: Sequence[str]) -> None:
        """Check that `classes` are the classes that the members were trained on, in the same order.

        Raises:
            RecipeError: If they differ.
        """
        trained = self.trained_classes() or classes
        changed = _differences(dict(enumerate(trained)), dict(enumerate(classes)))
        if changed:
            raise RecipeError(
                f"the classes of the data must be those that the members of {self.path} were trained on. "
                f"First difference: class {next(iter(changed.values()))}.\n  Restore the classes and their order."
            )

    def append_event(self, event: str, **fields: Any) -> None:
        """Append an event to the journal and flush it to disk. The caller holds the lock of the folder.

        Args:
            event: Name of the event, such as `"member_finished"`.
            **fields: Further JSON values of the event.

        Raises:
            ResourceError: If the journal cannot be written.
        """
        line = json.dumps({"time": utc_timestamp(), "event": event, **fields}, allow_nan=False) + "\n"
        path = self.path / "journal.jsonl"
        with translate_os_errors(path), open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # other processes may share the folder
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # remove the partial last line of a killed process
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """Return the events of the journal in order, without a partial last line.

        Raises:
            RunError: If the journal is damaged.
        """
        path = self.path / "journal.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}. Move it elsewhere to continue without it.") from error

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / name} cannot be read: {error}. Choose another --run folder.") from error

    def _missing_record_files(self) -> list[str]:
        return [name for name in _RECORD_FILES if not (self.path / name).is_file()]

    def _record(self, recipe_file: RecipeFile, parameters: dict[str, Any], smoke: bool, command: str) -> None:
        self._require_empty()
        self._record_files(recipe_file)
        write_json(self.path / "parameters.json", parameters)
        environment = {"recipe": recipe_file.name, "smoke": smoke, "seed": parameters.get("seed"), "command": command}
        write_json(self.path / "environment.json", environment | _environment())

    def _record_files(self, recipe_file: RecipeFile) -> None:
        """Write the recipe and the modules beside it, and remove recorded modules that it no longer imports."""
        files = recipe_file.files()
        for name, content in files.items():
            write_file(self.path / name, content)
        for file in [file for file in (self.path / MODULES_FOLDER).rglob("*") if file.is_file()]:
            if file.relative_to(self.path).as_posix() not in files:
                file.unlink()

    def _require_empty(self) -> None:
        visible = {file.name for file in self.path.iterdir() if not file.name.startswith(".")}
        if unexpected := sorted(visible - {"lock", MODULES_FOLDER, *_RECORD_FILES}):
            raise RunError(
                f"{self.path} is not a run folder and not empty: it contains {unexpected[0]}. "
                "Choose another --run folder."
            )

    def _update_record(
        self, recipe_file: RecipeFile, parameters: dict[str, Any], smoke: bool, allow_config_change: bool
    ) -> None:
        """Record a changed recipe or changed parameters, if the members stay the same or the change is allowed."""
        # Compare parameters as JSON stores them, with lists in place of tuples.
        old, new = self._read_json("parameters.json"), json.loads(json.dumps(parameters))
        changes = _differences({**old, "--smoke": self.smoke}, {**new, "--smoke": smoke})
        changed_lines = _changed_lines(self.recipe_file().sources(), recipe_file.sources())
        blocking = [text for name, text in changes.items() if not _is_ignorable_change(name, old, new)]
        if not recipe_file.same_program_as(self.recipe_file()):
            blocking += changed_lines
        if blocking and (not allow_config_change or smoke != self.smoke):
            self._raise_mismatch(blocking, recipe_file, can_allow=smoke == self.smoke)
        if changes or changed_lines:
            self.append_event("changed", changes=[*changes.values(), *changed_lines])
            self._record_files(recipe_file)
            write_json(self.path / "parameters.json", parameters)

    def _raise_mismatch(self, changes: list[str], recipe_file: RecipeFile, can_allow: bool) -> None:
        listing = "\n  ".join(changes)
        other_path = shlex.quote(f"{self.path}-2")
        message = (
            f"{self.path} was trained with a different configuration:\n  {listing}\n"
            f"No file was changed. To keep both, run: keras-committee train {recipe_file.path} --run {other_path} ..."
        )
        if can_allow:
            message += "\nTo keep the finished members and train the others with the change, add: --allow-config-change"
        raise RunError(message)


def training_seconds(events: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the wall time of training, from each start to its end, or to the last event of a killed process.

    Args:
        events: The journal of a run, in order.

    Returns:
        Seconds over all starts; None if training never started.
    """
    intervals: list[tuple[datetime, datetime]] = []
    running = False
    for event in events:
        name, time = event["event"], datetime.fromisoformat(event["time"])
        if name == "training_started":
            intervals.append((time, time))
            running = True
        elif running and name.startswith(("training_", "member_")):
            intervals[-1] = (intervals[-1][0], time)
            running = name not in _TRAINING_END_EVENTS
    if not intervals:
        return None
    return sum(max(0.0, (end - start).total_seconds()) for start, end in intervals)


def _explain_no_run(path: Path, missing: list[str]) -> str:
    """Return why `path` is not a run folder, and the command that creates one."""
    if path.is_file():
        recipe = path if path.suffix == ".py" else "RECIPE"
        return f"it is a file. Create a run with `keras-committee train {recipe}`."
    if path.is_dir():
        description = f"it has no {', '.join(missing)}."
    else:
        runs = [record.parent.name for record in path.parent.glob(f"*/{_RECORD_FILES[-1]}")]
        suggestion = did_you_mean(path.name, runs, prefix=str(path).removesuffix(path.name))
        description = f"there is no such folder.{suggestion}"
    return f"{description} Create one with `keras-committee train RECIPE --run {path}`."


def _differences(old: Mapping, new: Mapping) -> dict[Any, str]:
    """Return `"learning_rate 0.1 -> 0.05"` for each key whose value differs."""
    triples = [(key, old.get(key, "absent"), new.get(key, "absent")) for key in {**old, **new}]
    return {key: f"{key} {before} -> {after}" for key, before, after in triples if before != after}


def _is_ignorable_change(name: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether a changed parameter leaves the members the same: each depends on its own seed only."""
    are_counts = isinstance(old.get(name), int) and isinstance(new.get(name), int)
    return name == "data_dir" or (name == "members" and are_counts and new[name] > old[name])


def _changed_lines(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return `"recipe -x = 1"` for each changed line of the recipe, and `"recipe_modules/a.py -x = 1"` of a module."""
    lines = []
    for name in {**old, **new}:
        texts = [sources.get(name, "").splitlines() for sources in (old, new)]
        changes = list(difflib.unified_diff(*texts, lineterm="", n=0))[2:]
        label = name.removesuffix(".py") if name == "recipe.py" else name
        lines += [f"{label} {line}" for line in changes if not line.startswith("@@")]
    rest = [f"... and {len(lines) - _MAX_LISTED_LINES} more lines"] if len(lines) > _MAX_LISTED_LINES else []
    return lines[:_MAX_LISTED_LINES] + rest


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(item) for item in value) if isinstance(value, list) else value


def _environment() -> dict[str, Any]:
    return {"versions": _versions(), "commit": _git_commit(), "platform": platform.platform(), "cpus": os.cpu_count()}


def _versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that affect results; None for a missing package."""
    packages = {package: _package_version(package) for package in _RECORDED_PACKAGES}
    return {"python": platform.python_version(), **packages}


def _package_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit checked out in the current folder, or None outside a repository."""
    try:
        completed = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() or None if completed.returncode == 0 else None
