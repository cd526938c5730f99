"""Run folders: the recipe, parameters, environment, journal and members of a training run."""

import contextlib
import dataclasses
import difflib
import errno
import fcntl
import glob
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from keras_committee.class_folders import distinguish, is_utf8, show_bytes
from keras_committee.errors import DataError, IncompleteError, RecipeError, RunError, did_you_mean
from keras_committee.files import (
    checked_line,
    expand_home,
    file_lock,
    json_content,
    parse_record,
    read_checked_lines,
    read_problem,
    read_record,
    translate_os_errors,
    utc_timestamp,
    write_file,
    write_record,
)
from keras_committee.folder_kinds import FolderKind, explain_wrong_folder
from keras_committee.member_dir import DataInfo, MemberDir
from keras_committee.precision import Device, training_device
from keras_committee.recipe import Recipe, smoke_members
from keras_committee.recipe_file import RecipeFile
from keras_committee.recipe_source import MODULES_FOLDER
from keras_committee.selection import Selection

# Written in this order for a new run: a folder with the last one is complete. The last one has the SHA-256 of every
# content of the others, and of the modules of the recipe, that the run ever accepted, and a checksum of itself.
_RECORD_FILES = ("recipe.py", "parameters.json", "environment.json")
_RECORD_LOCK_TIMEOUT = 30.0  # seconds; another job that shares the folder holds it while writing these files
_RECORDED_PACKAGES = ("keras-committee", "keras", "tensorflow", "numpy")
_MAX_LISTED_LINES = 10  # changed lines of a recipe in an error message
_DIVIDED = "validation_divided"  # event
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
    record_last: bool = False,
    check: Callable[["Run", Recipe], object] | None = None,
) -> Iterator[tuple["Run", Recipe]]:
    """Create or continue the run of a recipe, lock its folder, and build the recipe.

    Invalid overrides and a folder of another recipe raise before the recipe is executed, which may import TensorFlow; a
    recipe that cannot be built raises before a folder is made.

    Args:
        recipe: The recipe file.
        overrides: Recipe parameters that differ from their defaults, as for `RecipeFile.resolve`.
        path: The run folder; None is `default_run_path`.
        command: Command line that starts and resumes this run; recorded for error messages.
        smoke: Whether to use the reduced recipe of `Recipe.for_smoke_run`.
        allow_config_change: Whether to continue a run whose recipe or parameters differ.
        shared: Whether other processes may share the folder, each training other members.
        record_last: Whether changes of a run that has members are recorded when the `with` block ends without an error.
        check: Function of the run and of the built recipe that raises an error before the folder is made or changed.

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
    given = _Configuration(recipe_file, parameters, smoke, command, allow_config_change, shared)
    run = Run(expand_home(default_run_path(recipe_file, smoke=smoke) if path is None else path))
    run._require_acceptable(given)
    recipe_file.require_data_folders(parameters)
    built = recipe_file.build(parameters, smoke=smoke)
    if check is not None:
        check(run, built)
    with run._locked_record(given, _compared_paths(built), last=record_last):
        yield run, built


@contextlib.contextmanager
def lock_runs(
    paths: Sequence[str | Path], overrides: Sequence[str] = (), *, shared: bool = False, reads_data: bool = True
) -> Iterator[list["Run"]]:
    """Open existing runs and hold their locks. Data that are missing raise before a recipe is executed, where possible.

    Args:
        paths: The run folders.
        overrides: New paths of the data, such as `["data_dir=/mnt/photos"]`, for each run that has such a parameter.
            They are recorded, so that later commands need no override.
        shared: Whether other processes may hold shared locks, too.
        reads_data: Whether the data will be read.

    Raises:
        RecipeError: If no run has a parameter of that name.
        RunError: If a path is not a run folder or is in use, an override is not a path of its data, or the images there
            are not those that its members were trained on.
        DataError: If the data cannot be read.
    """
    runs = [Run.open(path) for path in paths]
    with contextlib.ExitStack() as stack:
        for run in {run.path.resolve(): run for run in runs}.values():
            stack.enter_context(run.lock(shared=shared))
        _move_data(runs, overrides)
        try:
            for run in runs if reads_data else []:
                run.recipe_file().require_data_folders(run.parameters())
            yield runs
        except DataError as error:
            if not (names := _missing_paths(runs, str(error))):
                raise
            raise DataError(f"{error}\n  If the data were moved, add: --set {names[0]}=PATH") from error


def default_run_path(recipe_file: RecipeFile, *, smoke: bool = False) -> Path:
    """Return `runs/NAME`, or `runs/NAME-smoke` for a smoke run, relative to the current folder."""
    return Path("runs", f"{recipe_file.name}-smoke" if smoke else recipe_file.name)


@dataclasses.dataclass(frozen=True)
class _Configuration:
    """What a command is about to train in a run folder; the fields are the arguments of `open_run`."""

    recipe_file: RecipeFile
    parameters: dict[str, Any]
    smoke: bool
    command: str
    allow_config_change: bool
    shared: bool

    def contents(self) -> dict[str, bytes]:
        """Return the contents of the recipe, its modules and the parameters, by path relative to the run folder."""
        return {**self.recipe_file.files(), "parameters.json": json_content(self.parameters)}

    def new_environment(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe_file.name,
            "smoke": self.smoke,
            "seed": self.parameters.get("seed"),
            "command": self.command,
            "versions": _versions(),
            "commit": _git_commit(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "files": {},
        }


@dataclasses.dataclass(frozen=True)
class _Changes:
    """Differences between a command and the record of a run, as lines of text.

    Attributes:
        listing: All of them.
        blocking: Those that change members.
    """

    listing: list[str]
    blocking: list[str]


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

        Three changes leave the members the same and are always accepted and recorded: more members, another path of the
        data or of the teacher (their contents are compared), and other comments or layout of the recipe. Everything is
        accepted while no member is finished or has checkpoints, and in the folder of a smoke run, whose members are
        then trained again. Damaged or missing files of the record are restored if the given recipe and parameters are
        those that the run recorded.

        Args:
            path: The run folder.
            recipe_file: The recipe.
            parameters: All its parameters, as returned by `RecipeFile.resolve`.
            smoke: Whether this is a smoke run.
            command: Command line that starts and resumes this run.
            allow_config_change: Whether to accept other changes, too.
            shared: Whether other processes may be training in the folder.

        Raises:
            RunError: If the folder belongs to another recipe or other parameters, is in use, or its name is not UTF-8.
            ResourceError: If the folder cannot be written.
        """
        run = cls(expand_home(path))
        given = _Configuration(recipe_file, parameters, smoke, command, allow_config_change, shared)
        with run._locked_record(given):
            return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing run folder.

        Raises:
            RunError: If `path` is not a run folder, or its recipe, parameters or environment are missing or damaged.
        """
        run = cls(expand_home(path))
        if (missing := run._missing_record_files()) and not run._has_work():
            raise RunError(f"{path} is not a run folder: {_explain_no_run(run.path, missing)}")
        run.environment()
        return run

    def recipe_file(self) -> RecipeFile:
        """Return the recipe file that the run recorded. Raises as `environment`."""
        return RecipeFile.read(self.path / "recipe.py", name=self.environment()["recipe"])

    def parameters(self) -> dict[str, Any]:
        """Return the recipe parameters of the run. Raises as `environment`."""
        defaults = self.recipe_file().defaults
        return {
            name: _to_tuples(value) if isinstance(defaults.get(name), tuple) else value
            for name, value in self._read_parameters().items()
        }

    def recipe(self) -> Recipe:
        """Execute the recorded recipe file and return the recipe of the run, reduced if it is a smoke run."""
        return self.with_precision(self.recipe_file().build(self.parameters(), smoke=self.smoke))

    @property
    def precision(self) -> str | None:
        """Precision in which training began; None before. Raises as `environment`."""
        recorded = self.environment().get("precision") or self._journaled("precision", None)
        if recorded is None and (self.path / "members").exists():
            return "float32"  # the default of the versions that did not record it
        return recorded

    def with_precision(self, recipe: Recipe) -> Recipe:
        """Return `recipe` with precision `"auto"` replaced by that in which training began, if it has begun."""
        precision = self.precision if recipe.precision == "auto" else None
        return dataclasses.replace(recipe, precision=precision) if precision else recipe

    def begin_precision(
        self, recipe: Recipe, find_device: Callable[[], Device] = training_device
    ) -> tuple[Recipe, str]:
        """Replace precision `"auto"` by that in which training began; choose and record it if this is the beginning.

        Args:
            recipe: The recipe to train.
            find_device: Function that returns the device of its members.

        Returns:
            The recipe, and a line for the user: the choice and its reason, or a warning; empty if there is neither.

        Raises:
            RecipeError: If the precision is `"mixed_float16"` and the device is a CPU.
            RunError: If the record of the run is damaged.
            ResourceError: If the record cannot be written.
        """
        is_auto, is_new = recipe.precision == "auto", self.precision is None
        precision, device = self.with_precision(recipe).precision, None
        if precision != "float32":
            device = find_device()
            device.require(precision)
        if is_new:
            recorded = self._record_precision(device.precision if device and is_auto else precision)
            precision = recorded if is_auto else precision
        line = device.explain(precision, is_new=is_new, is_auto=is_auto) if device else ""
        return dataclasses.replace(recipe, precision=precision), line

    def require_teacher(self, record: Mapping[str, str], *, restart: bool = False) -> None:
        """Check that a teacher is the one that the members of the run learned from, wherever it is now.

        Args:
            record: As for `record_teacher`.
            restart: Whether the unfinished members will be trained from the start.

        Raises:
            RunError: If its weights differ.
        """
        environment = self._environment_or_none() or {}
        recorded = environment.get("teacher")
        has_learned = bool(self.finished_members()) if restart else self.has_members()
        if recorded and has_learned and not environment["smoke"] and recorded["weights"] != record["weights"]:
            raise RunError(
                f"the teacher in {record['path']} is not the one that the members of {self.path} learned from: the "
                f"SHA-256 of its weights is {record['weights'][:12]}, not {recorded['weights'][:12]}, which was in "
                f"{recorded['path']}.\n  The members are kept. Restore that teacher or set its path, or train in a new "
                f"folder: --run {shlex.quote(str(self._free_path()))}"
            )

    def record_teacher(self, record: Mapping[str, str]) -> None:
        """Record the teacher of the members that are trained from now on. The caller holds the lock of the folder.

        Args:
            record: Absolute `"path"` of the teacher, and SHA-256 of its `"weights"`.

        Raises:
            RunError: If members learned from another one, or the record of the run is damaged.
            ResourceError: If it cannot be written.
        """
        with self._record_lock():
            self.require_teacher(record)
            if (environment := self.environment()).get("teacher") != record:
                write_record(self.path / "environment.json", {**environment, "teacher": dict(record)})

    def restore_best(self) -> str | None:
        """Return the score by which the epoch of each member was chosen, see `Recipe`.

        A run of an earlier version did not record it; its recipe is executed.
        """
        recorded = next((event for event in reversed(self._readable_events()) if "restore_best" in event), None)
        return recorded["restore_best"] if recorded else self.recipe().restore_best

    def environment(self) -> dict[str, Any]:
        """Return versions, machine, command, seed and smoke flag of the first start.

        Raises:
            RunError: If a file of the record, the recipe or the parameters too, is missing or damaged.
        """
        if self._record_problems() and (problems := self._record_problems()):  # unless a change was just recorded
            raise RunError(
                f"{self._list_problems(problems)}.\n  {self._kept_work()} To restore the record, run the training "
                f"command of this run again, with the same recipe and --set options: {self._training_command(problems)}"
            )
        return read_record(self.path / "environment.json")

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

    @property
    def stacked_state(self) -> Path:
        """The folder of the checkpoints of unfinished members that train as one program."""
        return self.path / "stacked"

    def log_path(self, index: int) -> Path:
        """Return the log file of the process that trains member `index`."""
        return self.path / "logs" / f"member-{index:02d}.log"

    def finished_members(self) -> list[int]:
        """Return the indices of the finished members, ascending."""
        names = [folder.name for folder in (self.path / "members").glob("*")]
        return sorted(int(name) for name in names if name.isdecimal() and self.member(int(name)).finished)

    def has_members(self) -> bool:
        """Return whether a member is finished or has checkpoints."""
        folder = self.path / "members"
        states = [self.stacked_state, *folder.glob("*/state")]
        return any(folder.glob("*/model.keras")) or any(state.is_dir() and any(state.iterdir()) for state in states)

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

    def require_member(self, index: int) -> None:
        """Check that a member is finished.

        Raises:
            IncompleteError: If it is not finished.
            RecipeError: If the run has no such member.
        """
        finished = self.finished_members()
        if index in finished:
            return
        listing = f"Finished members: {', '.join(map(str, finished)) or 'none'}."
        if not 0 <= index < self.recipe().members:
            raise RecipeError(f"{self.path} has no member {index}. {listing}")
        raise IncompleteError(
            f"member {index} of {self.path} is not trained. {listing}\n"
            f"  To resume, run: {self.environment()['command']}"
        )

    def require_members(self, min_members: int | None = None) -> None:
        """Raise as `available_members`, before the recipe is executed, if its file shows how many members there are."""
        if parameter := self.recipe_file().fields.get("members"):
            planned = self.parameters()[parameter]
            self.available_members(smoke_members(planned) if self.smoke else planned, min_members)

    @contextlib.contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the lock of the folder.

        Args:
            shared: Whether other processes may hold a shared lock, each training other members.

        Raises:
            InUseError: If another process holds the lock.
            ResourceError: If the lock file cannot be written, or its file system does not support locks.
            RunError: If the journal is a folder, so that nothing could be recorded.
        """
        self._journal  # noqa: B018 - raises now, not after the work
        with file_lock(self.path / "lock", f"run folder {self.path}", shared=shared):
            yield

    def data_info(self, index: int) -> DataInfo:
        """Return the classes and the image transform of the data that member `index` was trained on.

        Raises:
            RunError: If the file of the member is damaged or has no such description.
        """
        info = self.member(index).data_info()
        if info is None:
            folder, new_folder = shlex.quote(str(self.path)), shlex.quote(f"{self.path}-2")
            raise RunError(
                f"{self.member(index).model} does not contain the classes and the image transform that it was trained "
                "with: an earlier version or another program wrote it. No file was changed.\n  To use it, import it "
                f"into a new run: keras-committee import {folder}/recipe.py {folder}/members/*/model.keras "
                f"--run {new_folder}"
            )
        return info

    def require_classes(self, classes: Sequence[str]) -> None:
        """Check that `classes` are the classes that the finished members were trained on, in the same order.

        Raises:
            RecipeError: If they differ.
            RunError: If the file of a member is damaged.
        """
        for index in self.finished_members():
            info = self.member(index).data_info()
            trained = classes if info is None else info.classes
            changed = _differences(dict(enumerate(trained)), dict(enumerate(classes)))
            if changed:
                raise RecipeError(
                    f"the classes of the data must be those that the members of {self.path} were trained on. "
                    f"First difference: class {next(iter(changed.values()))}.\n  Restore the classes and their order."
                )

    def require_data(self, splits: Any) -> str:
        """Check that loaded data are those that the members of the run were trained on, wherever they are now.

        Args:
            splits: The loaded data.

        Returns:
            The fingerprint of the training images, for the event `training_started`.

        Raises:
            RecipeError: If the classes or their order differ.
            RunError: If the data were moved, and the images differ.
        """
        self.require_classes(splits.classes)
        fingerprint, moved = splits.train.fingerprint(), self._moved_since_training()
        if moved and self.finished_members() and self._trained_on() not in (None, fingerprint):
            self._raise_other_images(moved)
        return fingerprint

    def _trained_on(self) -> str | None:
        """Return the fingerprint of the images that the members were trained on; None if it is unknown."""
        fingerprint = None
        for event in self._readable_events():
            fingerprint = None if event.get("members_changed") else event.get("data", fingerprint)
        return fingerprint

    def _moved_since_training(self) -> list[str]:
        """Return the changes since training last started."""
        changes: list[str] = []
        for event in self._readable_events():
            changes = [] if "data" in event else [*changes, *event.get("changes", [])]
        return changes

    def _readable_events(self) -> list[dict[str, Any]]:
        try:
            return self.events()
        except RunError:
            return []

    def _raise_other_images(self, changes: Iterable[str]) -> None:
        listing = "\n  ".join(changes)
        raise RunError(
            f"the training images are not those that the members of {self.path} were trained on. What was changed:\n"
            f"  {listing}\nThe members are kept. Set the path of the same images, or train in a new folder: --run "
            f"{shlex.quote(str(self._free_path()))}"
        )

    def append_event(self, event: str, **fields: Any) -> None:
        """Append an event to the journal and flush it to disk. The caller holds the lock of the folder.

        Args:
            event: Name of the event, such as `"member_finished"`.
            **fields: Further JSON values of the event.

        Raises:
            RunError: If the journal is a folder.
            ResourceError: If the journal cannot be written.
        """
        line, path = checked_line({"time": utc_timestamp(), "event": event, **fields}), self._journal
        with translate_os_errors(path), open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # other processes may share the folder
            file.seek(0)
            content = file.read()
            end = content.rfind(b"\n") + 1
            last = _complete_event(content[end:])
            file.truncate(end + len(last))  # removes the partial last line of a killed process
            file.write((b"\n" if last else b"") + line)
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """Return the events of the journal in order, without a partial last line.

        Raises:
            RunError: If the journal is damaged.
        """
        path = self._journal
        try:
            *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
            last = _complete_event(rest)
            return read_checked_lines([*lines, last] if last else lines)
        except (OSError, ValueError) as error:
            raise _damaged_journal_error(path, read_problem(error)) from error

    def exports(self) -> list[Path]:
        """Return the folders of the exported versions that still exist, the newest last. Raises as `events`."""
        versions = [Path(event["version"]) for event in self.events() if event["event"] == "exported"]
        newest_first = dict.fromkeys(reversed(versions))  # a version that was deleted and exported again counts last
        return [version for version in reversed(newest_first) if version.is_dir()]

    def is_divided(self) -> bool:
        """Return whether the validation split is divided; see `divide`. Raises RunError if the journal is damaged."""
        return any(event["event"] == _DIVIDED for event in self.events())

    def divide(self, examples: int) -> None:
        """Record that the validation split is divided: from now on, nothing is chosen with the part for promises.

        The parts are those of `split_sizes.divide_for_promise`. The caller holds the lock of the folder.

        Args:
            examples: Number of validation images.
        """
        if not self.is_divided():
            self.append_event(_DIVIDED, examples=examples)

    @property
    def _journal(self) -> Path:
        path = self.path / "journal.jsonl"
        if path.is_dir():
            raise _damaged_journal_error(path, "it is a folder")
        return path

    def _record_lock(self) -> contextlib.AbstractContextManager[None]:
        return file_lock(self.path / ".record.lock", f"the record of {self.path}", timeout=_RECORD_LOCK_TIMEOUT)

    def _record_precision(self, precision: str) -> str:
        """Record the precision in which training begins; return that of another process that was faster, if any."""
        with self._record_lock():
            environment = {"precision": precision} | self.environment()
            write_record(self.path / "environment.json", environment)
        return environment["precision"]

    def _has_work(self) -> bool:
        """Return whether training has begun: there are members or a journal."""
        return any((self.path / name).exists() for name in ("members", "journal.jsonl"))

    def _kept_work(self) -> str:
        """Return a sentence about the members, for the errors about other files."""
        finished = len(self.finished_members())
        states = [path.parent.name for path in (self.path / "members").glob("*/state")]
        unfinished = sum(name.isdecimal() and not self.member(int(name)).finished for name in states)
        if not finished and not unfinished:
            return "No member was trained."
        return f"The members are safe: {finished} finished, {unfinished} with checkpoints."

    def _training_command(self, problems: Mapping[str, str]) -> str:
        if "environment.json" in problems:
            return f"keras-committee train RECIPE --run {shlex.quote(str(self.path))}"
        return read_record(self.path / "environment.json")["command"]

    def _list_problems(self, problems: Mapping[str, str]) -> str:
        return "; ".join(f"{self.path / name} {problem}" for name, problem in problems.items())

    def _read_parameters(self) -> dict[str, Any]:
        return json.loads((self.path / "parameters.json").read_bytes())

    def _missing_record_files(self) -> list[str]:
        return [name for name in _RECORD_FILES if not (self.path / name).is_file()]

    def _record_problems(self) -> dict[str, str]:
        """Return for each file of the record that is missing or damaged what is wrong with it."""
        problems, accepted = {}, None
        try:
            accepted = read_record(self.path / "environment.json")["files"]
        except (OSError, ValueError) as error:
            problems["environment.json"] = _describe_damage(error)
        for name in accepted or _RECORD_FILES[:-1]:
            try:
                content = (self.path / name).read_bytes()
                if accepted and _sha256(content) not in accepted[name]:
                    raise ValueError("its SHA-256 is not that in environment.json")
                if name == "parameters.json":
                    json.loads(content)
            except (OSError, ValueError) as error:
                problems[name] = _describe_damage(error)
        return problems

    def _require_acceptable(self, given: _Configuration) -> None:
        """Raise if the folder cannot be created, or belongs to another configuration; create nothing.

        A changed parameter whose new value is an existing path may be a path of the data; it is accepted here.

        Raises:
            RunError: If the folder belongs to another configuration, is in use, or its name is not UTF-8.
            ResourceError: If the folder cannot be created.
        """
        self._require_utf8()
        with translate_os_errors(self.path):
            existing = next(path for path in (self.path, *self.path.parents) if path.exists())
            if not existing.is_dir():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(existing))
            if existing != self.path:
                if not os.access(existing, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))
                return
        if self._is_new():
            self._require_empty()
            return
        with self.lock(shared=given.shared), self._record_lock():
            self._review(given, None)

    @contextlib.contextmanager
    def _locked_record(
        self, given: _Configuration, data_paths: Collection[str] = (), *, last: bool = False
    ) -> Iterator[None]:
        """Create the folder or continue the run in it, and hold its lock. Raises as `create`.

        With `last` the changes of a run that has members are recorded at the end, unless an error is raised.
        """
        self._require_utf8()
        with translate_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
        if self._is_new():
            self._require_empty()  # before a lock file is written to a folder of something else
        with self.lock(shared=given.shared):
            with self._record_lock():
                is_last = last and self.has_members() and not self._record_problems()
                if self._is_new():
                    self._record(given)
                elif is_last:
                    self._review(given, data_paths)
                else:
                    self._update_record(given, data_paths)
            yield
            if is_last:
                with self._record_lock():
                    self._update_record(given, data_paths)

    def _require_utf8(self) -> None:
        if not is_utf8(str(self.path)):  # TensorFlow cannot trace functions or write logs there
            name = show_bytes(str(self.path))
            raise RunError(f"the name of the run folder {name} is not UTF-8. Use another: --run DIR")

    def _is_new(self) -> bool:
        return bool(self._missing_record_files()) and not self._has_work()

    def _record(self, given: _Configuration) -> None:
        self._require_empty()
        self._write_contents(given.contents())
        write_record(self.path / "environment.json", _accept(given.new_environment(), given.contents()))

    def _write_contents(self, contents: Mapping[str, bytes]) -> None:
        """Write the recipe, its modules and the parameters, and remove recorded modules that it no longer imports."""
        for name, content in contents.items():
            write_file(self.path / name, content)
        for file in [file for file in (self.path / MODULES_FOLDER).rglob("*") if file.is_file()]:
            if file.relative_to(self.path).as_posix() not in contents:
                file.unlink()

    def _require_empty(self) -> None:
        visible = {file.name for file in self.path.iterdir() if not file.name.startswith(".")}
        if unexpected := sorted(visible - {"lock", MODULES_FOLDER, *_RECORD_FILES}):
            raise RunError(
                f"{self.path} is not a run folder and not empty: it contains {unexpected[0]}. "
                "Choose another --run folder."
            )

    def _update_record(self, given: _Configuration, data_paths: Collection[str]) -> None:
        """Record a changed recipe or changed parameters, if the members stay the same or the change is allowed.

        Missing and damaged files are restored under the same condition: what is given must be what was recorded.
        """
        problems, environment = self._record_problems(), self._environment_or_none()
        changes = self._review(given, data_paths)
        if problems:
            self.append_event("record_restored", files=sorted(problems))
        if changes.listing:
            fields = {"smoke": given.smoke, "members_changed": True} if changes.blocking else {}
            self.append_event("changed", changes=changes.listing, **fields)
        if self._starts_over(given) and (changes.blocking or problems):
            for folder in (self.path / "members", self.stacked_state):
                shutil.rmtree(folder, ignore_errors=True)
            accepted = environment["files"] if environment else {}
            environment = {**given.new_environment(), "files": accepted}
        if changes.listing or problems:
            new_values = {} if "parameters.json" in problems else self._changed_parameters(given.parameters)
            environment = environment or given.new_environment()
            environment["command"] = _with_parameters(environment["command"], new_values)
            write_record(self.path / "environment.json", _accept(environment, given.contents()))
            self._write_contents(given.contents())

    def _review(self, given: _Configuration, data_paths: Collection[str] | None) -> _Changes:
        """Return the differences of a command from the record.

        Args:
            given: The configuration of the command.
            data_paths: Paths of its data; None if they are unknown, as the recipe was not executed.

        Raises:
            RunError: If they would change members that must be kept.
        """
        problems, environment = self._record_problems(), self._environment_or_none()
        changes = self._changes(given.recipe_file, given.parameters, problems, data_paths)
        recorded_smoke = environment["smoke"] if environment else self._journaled("smoke", given.smoke)
        if given.smoke != recorded_smoke:
            text = f"--smoke {recorded_smoke} -> {given.smoke}"
            changes = _Changes([*changes.listing, text], [*changes.blocking, text])
        if self._starts_over(given):
            return changes
        can_allow = given.smoke == recorded_smoke
        if changes.blocking and not (given.allow_config_change and can_allow):
            self._raise_mismatch(changes.blocking, given.command, can_allow)
        if problems and not given.allow_config_change:
            self._require_recorded(given.contents(), environment["files"] if environment else {}, problems)
        return changes

    def _starts_over(self, given: _Configuration) -> bool:
        """Return whether a change of the configuration is accepted, as no member is kept.

        In a shared folder another process may be about to train.
        """
        if given.shared:
            return False
        if not self.has_members():
            return True
        environment = self._environment_or_none()
        return bool(given.smoke and environment and environment["smoke"] and not given.allow_config_change)

    def _environment_or_none(self) -> dict[str, Any] | None:
        """Return the recorded environment; None if it is missing or damaged."""
        try:
            return read_record(self.path / "environment.json")
        except (OSError, ValueError):
            return None

    def _changes(
        self,
        recipe_file: RecipeFile,
        parameters: dict[str, Any],
        problems: Mapping[str, str],
        data_paths: Collection[str] | None,
    ) -> _Changes:
        """Return the differences from the files of the record that have no problem."""
        listing, blocking = [], []
        if "parameters.json" not in problems:
            # Compare parameters as JSON stores them, with lists in place of tuples.
            old, new = self._read_parameters(), json.loads(json.dumps(parameters))
            differences = _differences(old, new)
            listing += differences.values()
            blocking += [text for name, text in differences.items() if not _keeps_members(name, old, new, data_paths)]
        if not _has_damaged_source(problems):
            recorded = RecipeFile.read(self.path / "recipe.py")
            lines = _changed_lines(recorded.sources(), recipe_file.sources())
            listing += lines
            blocking += [] if recipe_file.same_program_as(recorded) else lines
        return _Changes(listing, blocking)

    def _changed_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters whose values differ from the recorded ones."""
        recorded, new = self._read_parameters(), json.loads(json.dumps(parameters))
        return {name: parameters[name] for name, value in new.items() if recorded.get(name, ...) != value}

    def _record_moved_data(self, overrides: Sequence[str]) -> None:
        """Record new paths of the data, if the images there are those that the members were trained on."""
        recipe_file, recorded = self.recipe_file(), self.parameters()
        given = recipe_file.resolve(overrides)
        values = {name: given[name] for name in map(_parameter_name, overrides) if given[name] != recorded[name]}
        if not values:
            return
        parameters, command = {**recorded, **values}, self.environment()["command"]
        differences = _differences(recorded, parameters)
        new_command = _replace_option(_with_parameters(command, values), "--run", str(self._free_path()))
        numbers = [name for name, value in values.items() if isinstance(value, (int, float))]
        self._require_no_other_changes([differences[name] for name in numbers], new_command)  # without TensorFlow
        _require_existing_paths(values)
        recipe = recipe_file.build(parameters, smoke=self.smoke)
        data_paths = _paths_in(recipe.data)
        other = [text for name, text in differences.items() if not _names_data(recorded, values, name, data_paths)]
        self._require_no_other_changes(other, new_command)
        splits: Any = recipe.data.load()
        self.require_classes(splits.classes)
        trained_on = self._trained_on()
        if trained_on not in (None, splits.train.fingerprint()):
            self._raise_other_images(differences.values())
        self.append_event("changed", changes=list(differences.values()))
        configuration = _Configuration(recipe_file, parameters, self.smoke, command, False, False)
        environment = {**self.environment(), "command": _with_parameters(command, values)}
        write_record(self.path / "environment.json", _accept(environment, configuration.contents()))
        self._write_contents(configuration.contents())

    def _require_no_other_changes(self, other: Sequence[str], new_command: str) -> None:
        """Raise RunError if parameters change that are no paths of the data."""
        if other:
            listing = "\n  ".join(other)
            raise RunError(
                f"--set changes paths of the data of {self.path} only. Received:\n  {listing}\n"
                f"No file was changed. To train with the change, run: {new_command}"
            )

    def _journaled(self, field: str, default: Any) -> Any:
        """Return the value of `field` in the last event that has it; `default` if there is none."""
        try:
            return next((event[field] for event in reversed(self.events()) if field in event), default)
        except RunError:
            return default

    def _require_recorded(
        self, contents: Mapping[str, bytes], accepted: Mapping[str, Sequence[str]], problems: Mapping[str, str]
    ) -> None:
        """Raise RunError unless the contents in place of damaged files are known to be those that were recorded."""
        damaged_source = _has_damaged_source(problems)
        for name, content in contents.items():
            in_question = name in problems or (damaged_source and name != "parameters.json")
            if in_question and _sha256(content) not in accepted.get(name, []):
                raise RunError(
                    f"{self._list_problems(problems)}; the {name} of this command is not known to be the recorded one."
                    f"\n  {self._kept_work()} No file was changed. To restore the record, use the recipe and the --set "
                    "options that the run was started with. If they differ in comments only, add: --allow-config-change"
                )

    def _raise_mismatch(self, changes: list[str], command: str, can_allow: bool) -> None:
        listing = "\n  ".join(changes)
        message = (
            f"{self.path} was trained with a different configuration:\n  {listing}\n"
            f"No file was changed. To keep both, run: {_replace_option(command, '--run', str(self._free_path()))}"
        )
        if can_allow:
            message += "\nTo keep the finished members and train the others with the change, add: --allow-config-change"
        raise RunError(message)

    def _free_path(self) -> Path:
        """Return the path of a new run folder beside this one."""
        paths = (self.path.with_name(f"{self.path.name}-{number}") for number in itertools.count(2))
        return next(path for path in paths if not path.exists())


def open_selected_runs(selection: Selection, folder: Path) -> list[Run]:
    """Open the run of each member of a selection, and execute its recipe, which registers its own layers with Keras.

    Args:
        selection: The selection.
        folder: Folder to which the `run` paths of its members are relative.

    Raises:
        RunError: If a run does not exist.
        RecipeError: If its recipe cannot be executed.
    """
    runs = {member.run: Run.open(folder / member.run) for member in selection.members}
    for run in runs.values():
        run.recipe()
    return [runs[member.run] for member in selection.members]


def selected_data_infos(selection: Selection, runs: Sequence[Run]) -> list[DataInfo]:
    """Return what each member of a selection was trained on.

    Args:
        selection: The selection.
        runs: The run of each of its members.

    Raises:
        RunError: If a member has no such description, or other classes than the selection.
    """
    infos = [run.data_info(member.index) for run, member in zip(runs, selection.members, strict=True)]
    for run, member, info in zip(runs, selection.members, infos, strict=True):
        changed = _differences(dict(enumerate(info.classes)), dict(enumerate(selection.classes)))
        if changed:
            raise RunError(
                f"the selection has other classes than its member {member.index} of {run.path}. First difference: "
                f"class {next(iter(changed.values()))}.\n  Select again: keras-committee select {run.path}"
            )
    return infos


def is_moved_data(name: str, old: Mapping[str, Any], new: Mapping[str, Any], recipe: Recipe) -> bool:
    """Return whether a changed parameter is a path of the data.

    Args:
        name: Name of the parameter.
        old: Recipe parameters before the change.
        new: Those of `recipe`.
        recipe: The recipe, built.
    """
    return name == "data_dir" or _names_data(old, new, name, _paths_in(recipe.data))


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
    if explanation := explain_wrong_folder(path, FolderKind.RUN):
        return explanation
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
    return {
        key: f"{key} {' -> '.join(distinguish(str(before), str(after)))}"
        for key, before, after in triples
        if before != after
    }


def _keeps_members(name: str, old: dict[str, Any], new: dict[str, Any], data_paths: Collection[str] | None) -> bool:
    """Return whether a changed parameter leaves the members the same: each depends on its own seed only.

    A path of the data does, as the images are compared; without `data_paths` so may every path that exists.
    """
    are_counts = isinstance(old.get(name), int) and isinstance(new.get(name), int)
    more_members = name == "members" and are_counts and new[name] > old[name]
    return name == "data_dir" or more_members or _names_data(old, new, name, data_paths)


def _names_data(old: Mapping[str, Any], new: Mapping[str, Any], name: str, data_paths: Collection[str] | None) -> bool:
    """Return whether the parameter is a path of the data, or of a folder that contains them."""
    before, after = old.get(name), new.get(name)
    if not isinstance(after, str) or not after or not isinstance(before, str | None):
        return False
    path = os.path.abspath(expand_home(after))
    if data_paths is None:
        return _exists(path)
    return any(data_path == path or data_path.startswith(path.rstrip(os.sep) + os.sep) for data_path in data_paths)


def _compared_paths(recipe: Recipe) -> set[str]:
    """Return the paths in a recipe whose contents are compared, so that they may be moved: of data and teacher."""
    teacher = {os.path.abspath(expand_home(recipe.teacher.path))} if recipe.teacher else set()
    return _paths_in(recipe.data) | teacher


def _exists(path: str) -> bool:
    """Return whether there is such a file or folder, or files that match the pattern."""
    return os.path.exists(path) or any(glob.iglob(path, recursive=True))


def _paths_in(value: Any) -> set[str]:
    """Return the absolute paths in the fields of a description of data, at any depth."""
    if isinstance(value, Path):
        return {os.path.abspath(value)}
    if dataclasses.is_dataclass(value):
        return _paths_in([getattr(value, field.name) for field in dataclasses.fields(value)])
    if isinstance(value, Mapping):
        return _paths_in(list(value.values()))
    return {path for item in value for path in _paths_in(item)} if isinstance(value, list | tuple) else set()


def _move_data(runs: Sequence[Run], overrides: Sequence[str]) -> None:
    """Record new paths of the data in each run that has such a parameter. The caller holds the locks."""
    known = {
        run.path: [text for text in overrides if _parameter_name(text) in run.recipe_file().defaults] for run in runs
    }
    for text in overrides:
        if not any(text in texts for texts in known.values()):
            runs[0].recipe_file().resolve([text])  # raises
    for run in runs:
        run._record_moved_data(known[run.path])


def _missing_paths(runs: Sequence[Run], message: str) -> list[str]:
    """Return the parameters of runs whose value is in the message of an error and is no existing path."""
    items = [item for run in runs for item in run.parameters().items()]
    texts = [(name, value) for name, value in items if isinstance(value, str) and value]
    return [name for name, value in texts if value in message and not _exists(str(expand_home(value)))]


def _parameter_name(override: str) -> str:
    return override.partition("=")[0]


def _require_existing_paths(values: Mapping[str, Any]) -> None:
    """Raise DataError if the new value of a parameter is a path that does not exist, before TensorFlow is imported."""
    for name, value in values.items():
        is_path = isinstance(value, str) and (os.sep in value or name == "data_dir")
        if is_path and not _exists(str(expand_home(value))):
            raise DataError(f"there are no data at {value} (parameter {name}). No file was changed.")


def _replace_option(command: str, option: str, value: str, prefix: str = "") -> str:
    """Return a command line with an option in place of earlier ones whose value starts with `prefix`."""
    try:
        words = shlex.split(command)
    except ValueError:  # of a caller in Python
        words = [command]
    kept = []
    while words:
        word, *words = words
        if word == option and words and words[0].startswith(prefix):
            words = words[1:]
        elif not word.startswith(f"{option}={prefix}"):
            kept.append(word)
    return shlex.join([*kept, option, value])


def _with_parameters(command: str, values: Mapping[str, Any]) -> str:
    """Return a command line with `--set` for each of the parameters."""
    for name, value in values.items():
        command = _replace_option(command, "--set", f"{name}={value}", prefix=f"{name}=")
    return command


def _changed_lines(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return `"recipe -x = 1"` for each changed line of the recipe, and `"recipe_modules/a.py -x = 1"` of a module."""
    lines = []
    for name in {**old, **new}:
        before, after = (sources.get(name, "").splitlines() for sources in (old, new))
        changes = list(difflib.unified_diff(before, after, lineterm="", n=0))[2:]
        label = name.removesuffix(".py") if name == "recipe.py" else name
        lines += [f"{label} {line}" for line in changes if not line.startswith("@@")]
    rest = [f"... and {len(lines) - _MAX_LISTED_LINES} more lines"] if len(lines) > _MAX_LISTED_LINES else []
    return lines[:_MAX_LISTED_LINES] + rest


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(item) for item in value) if isinstance(value, list) else value


def _accept(environment: dict[str, Any], contents: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the environment with the SHA-256 of new contents of the recorded files.

    It keeps the earlier ones, so that a kill between the writes of the files leaves none that is not accepted.
    """
    known = environment["files"]
    accepted = {name: sorted({*known.get(name, []), _sha256(content)}) for name, content in contents.items()}
    return {**environment, "files": accepted}


def _has_damaged_source(problems: Mapping[str, str]) -> bool:
    return bool(set(problems) - {"parameters.json", "environment.json"})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _describe_damage(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return f"is damaged: {read_problem(error)}"


def _damaged_journal_error(path: Path, reason: str) -> RunError:
    return RunError(
        f"{path} is damaged: {reason}. The members are not affected: it is only a "
        "log.\n  Move it elsewhere to continue without it."
    )


def _complete_event(rest: bytes) -> bytes:
    """Return the event at the start of what follows the last end of a line in a journal; nothing if it is partial."""
    try:
        text = rest.decode("latin-1")  # the object is ASCII
        _, end = json.JSONDecoder().raw_decode(text)
        parse_record(rest[:end])
    except (ValueError, RecursionError):
        return b""
    return rest[:end]


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
