"""Run folders: the recipe, parameters, environment, journal and members of a training run."""

import contextlib
import dataclasses
import difflib
import fcntl
import hashlib
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

from keras_committee.class_folders import distinguish, is_utf8, show_bytes
from keras_committee.errors import IncompleteError, RecipeError, RunError, did_you_mean
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
from keras_committee.member_dir import DataInfo, MemberDir
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile
from keras_committee.recipe_source import MODULES_FOLDER
from keras_committee.selection import Selection

# Written in this order for a new run: a folder with the last one is complete. The last one has the SHA-256 of every
# content of the others, and of the modules of the recipe, that the run ever accepted, and a checksum of itself.
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
        (the data are compared when a member resumes), and other comments or layout of the recipe. Damaged or missing
        files of the record are restored if the given recipe and parameters are those that the run recorded.

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
        if not is_utf8(str(path)):  # TensorFlow cannot trace functions or write logs there
            raise RunError(f"the name of the run folder {show_bytes(str(path))} is not UTF-8. Use another: --run DIR")
        with translate_os_errors(run.path):
            run.path.parent.mkdir(parents=True, exist_ok=True)
            run.path.mkdir(mode=0o700, exist_ok=True)
        record_lock = file_lock(run.path / ".record.lock", f"the record of {run.path}", timeout=_RECORD_LOCK_TIMEOUT)
        with run.lock(shared=shared), record_lock:
            if run._missing_record_files() and not run._has_work():
                run._record(recipe_file, parameters, smoke, command)
            else:
                run._update_record(recipe_file, parameters, smoke, command, allow_config_change)
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
        return self.recipe_file().build(self.parameters(), smoke=self.smoke)

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

    @property
    def _journal(self) -> Path:
        path = self.path / "journal.jsonl"
        if path.is_dir():
            raise _damaged_journal_error(path, "it is a folder")
        return path

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

    def _record(self, recipe_file: RecipeFile, parameters: dict[str, Any], smoke: bool, command: str) -> None:
        self._require_empty()
        contents = _record_contents(recipe_file, parameters)
        self._write_contents(contents)
        environment = _new_environment(recipe_file, parameters, smoke, command)
        write_record(self.path / "environment.json", _accept(environment, contents))

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

    def _update_record(
        self,
        recipe_file: RecipeFile,
        parameters: dict[str, Any],
        smoke: bool,
        command: str,
        allow_config_change: bool,
    ) -> None:
        """Record a changed recipe or changed parameters, if the members stay the same or the change is allowed.

        Missing and damaged files are restored under the same condition: what is given must be what was recorded.
        """
        problems, contents = self._record_problems(), _record_contents(recipe_file, parameters)
        environment = {} if "environment.json" in problems else read_record(self.path / "environment.json")
        recorded_smoke = environment["smoke"] if environment else self._journaled_smoke(smoke)
        changes, blocking = self._changes(recipe_file, parameters, problems)
        if smoke != recorded_smoke:
            blocking = [*blocking, f"--smoke {recorded_smoke} -> {smoke}"]
        can_allow = smoke == recorded_smoke
        if blocking and not (allow_config_change and can_allow):
            self._raise_mismatch(blocking, recipe_file, can_allow)
        if problems and not allow_config_change:
            self._require_recorded(contents, environment.get("files", {}), problems)
        if problems:
            self.append_event("record_restored", files=sorted(problems))
        if changes:
            self.append_event("changed", changes=changes)
        if changes or problems:
            environment = environment or _new_environment(recipe_file, parameters, smoke, command)
            write_record(self.path / "environment.json", _accept(environment, contents))
            self._write_contents(contents)

    def _changes(
        self, recipe_file: RecipeFile, parameters: dict[str, Any], problems: Mapping[str, str]
    ) -> tuple[list[str], list[str]]:
        """Return the differences from the files of the record that have no problem, and those that change members."""
        changes, blocking = [], []
        if "parameters.json" not in problems:
            # Compare parameters as JSON stores them, with lists in place of tuples.
            old, new = self._read_parameters(), json.loads(json.dumps(parameters))
            differences = _differences(old, new)
            changes += differences.values()
            blocking += [text for name, text in differences.items() if not _is_ignorable_change(name, old, new)]
        if not _has_damaged_source(problems):
            recorded = RecipeFile.read(self.path / "recipe.py")
            lines = _changed_lines(recorded.sources(), recipe_file.sources())
            changes += lines
            blocking += [] if recipe_file.same_program_as(recorded) else lines
        return changes, blocking

    def _journaled_smoke(self, default: bool) -> bool:
        """Return whether the journal is that of a smoke run; `default` if it does not contain it."""
        try:
            return next((event["smoke"] for event in self.events() if "smoke" in event), default)
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
    return {
        key: f"{key} {' -> '.join(distinguish(str(before), str(after)))}"
        for key, before, after in triples
        if before != after
    }


def _is_ignorable_change(name: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether a changed parameter leaves the members the same: each depends on its own seed only."""
    are_counts = isinstance(old.get(name), int) and isinstance(new.get(name), int)
    return name == "data_dir" or (name == "members" and are_counts and new[name] > old[name])


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


def _record_contents(recipe_file: RecipeFile, parameters: dict[str, Any]) -> dict[str, bytes]:
    return {**recipe_file.files(), "parameters.json": json_content(parameters)}


def _new_environment(recipe_file: RecipeFile, parameters: dict[str, Any], smoke: bool, command: str) -> dict[str, Any]:
    return {
        "recipe": recipe_file.name,
        "smoke": smoke,
        "seed": parameters.get("seed"),
        "command": command,
        "versions": _versions(),
        "commit": _git_commit(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "files": {},
    }


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
