"""Which versions of which models are loaded, who may use them, and when do they come and go?"""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_committee.tfserving.config import lint_models
from keras_committee.tfserving.server.loading import load_version
from keras_committee.tfserving.tf_protocol import StatusError
from keras_committee.tfserving.versions import find_versions, is_valid_name


@dataclasses.dataclass(frozen=True)
class ServableStatus:
    """What GetModelStatus tells of a version: `code` and `message` say why it cannot be served."""

    version: int
    state: str
    code: str = "OK"
    message: str = ""


@dataclasses.dataclass(eq=False)
class Servable:
    """One version. Who borrows it from the manager reads `name`, `version` and `session`; the rest is the manager's.

    `state` goes from START over LOADING, AVAILABLE and UNLOADING to END.
    """

    name: str
    version: int
    path: Path
    session: Any = None
    state: str = "START"
    error: StatusError | None = None
    aspired: bool = True
    num_users: int = 0
    tries: int = 0
    next_try: float = 0.0  # monotonic seconds

    def status(self) -> ServableStatus:
        failed = self.error if self.state in ("LOADING", "END") else None
        code_and_message = (failed.code, failed.message) if failed else ("OK", "")
        return ServableStatus(self.version, self.state, *code_and_message)

    def due(self) -> bool:
        """Whether it is time to load it, for the first time or once more."""
        return self.state in ("START", "LOADING") and time.monotonic() >= self.next_try

    def may_unload(self) -> bool:
        return self.state == "UNLOADING" and not self.num_users


@dataclasses.dataclass(frozen=True)
class VersionPolicy:
    """Which of the versions on disk to serve: `latest(n)`, `everything()` or `specific(...)`."""

    kind: str
    count: int = 1
    versions: tuple[int, ...] = ()

    @classmethod
    def latest(cls, count: int = 1) -> "VersionPolicy":
        """The `count` versions with the largest numbers."""
        if count < 1:
            raise StatusError("INVALID_ARGUMENT", f"num_versions is {count}; a policy keeps at least one version")
        return cls("latest", count=count)

    @classmethod
    def all_versions(cls) -> "VersionPolicy":
        """All versions."""
        return cls("all")

    @classmethod
    def specific(cls, *versions: int) -> "VersionPolicy":
        """These versions, where they exist."""
        return cls("specific", versions=versions)

    def select(self, available: Iterable[int]) -> set[int]:
        """Those of the versions `available` that should be served."""
        if self.kind == "all":
            return set(available)
        if self.kind == "specific":
            return set(available) & set(self.versions)
        return set(sorted(available)[-self.count :])


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model to serve: what TF Serving's models.config says of it.

    Attributes:
        name: 1 to 128 of A-Z a-z 0-9 _ . - and no dot in front.
        base_path: Absolute path of the folder with the version folders.
        policy: Which versions.
        labels: dict of label -> version.
    """

    name: str
    base_path: Path
    policy: VersionPolicy = dataclasses.field(default_factory=VersionPolicy.latest)
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_valid_name(self.name):
            raise StatusError(
                "INVALID_ARGUMENT",
                f"the model name {self.name!r} is not allowed: 1 to 128 of A-Z a-z 0-9 _ . - and no dot in front",
            )
        object.__setattr__(self, "base_path", Path(self.base_path))
        if not self.base_path.is_absolute():
            raise StatusError(
                "INVALID_ARGUMENT", f"Expected model {self.name} to have an absolute path, but got: {self.base_path}"
            )


def check_configs(configs: Iterable[ModelConfig]) -> dict[str, ModelConfig]:
    """The configs by name. Raises INVALID_ARGUMENT where two have one name."""
    by_name: dict[str, ModelConfig] = {}
    for config in configs:
        if config.name in by_name:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Illegal to list model {config.name} multiple times in config list",
            )
        by_name[config.name] = config
    return by_name


_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ManagerOptions:
    """How versions come and go; the defaults are those of TF Serving.

    Attributes:
        poll_seconds: Between two looks at the disk.
        max_retries: How often a load that failed is tried again.
        retry_seconds: Between these.
        allow_labels_for_unavailable: Whether a new label may name a version that is not loaded yet.
    """

    poll_seconds: float = 1.0
    max_retries: int = 5
    retry_seconds: float = 60.0
    allow_labels_for_unavailable: bool = False


class Manager:
    """Loads, lends and unloads versions: a new one is loaded before the old one goes, and a thread polls the disk."""

    def __init__(
        self,
        configs: Iterable[ModelConfig],
        options: ManagerOptions | None = None,
        load: Callable[[Path], Any] = load_version,
    ):
        self.options = options or ManagerOptions()
        self._load = load
        self._condition = threading.Condition(threading.RLock())
        self._configs: dict[str, ModelConfig] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._servables: dict[str, dict[int, Servable]] = {}
        self._closing = self._wake = False
        self._logged: set[str] = set()  # what was logged once of a base path
        self._configure(configs)
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def borrow(self, name: str, version: int | None = None, label: str | None = None) -> Iterator[Servable]:
        """Lends an available version (the largest where none is named), which stays loaded meanwhile.

        Raises:
            StatusError: NOT_FOUND where there is no such version, INVALID_ARGUMENT for an unknown label.
        """
        with self._condition:
            servable = self._find_servable(name, version, label)
            servable.num_users += 1
        try:
            yield servable
        finally:
            with self._condition:
                servable.num_users -= 1
                self._condition.notify_all()

    def statuses(self, name: str, version: int | None = None) -> list[ServableStatus]:
        """The state of every version of a model that was ever seen, or of one; the largest number first."""
        with self._condition:
            known = self._servables.get(name, {})
            statuses = [known[number].status() for number in sorted(known, reverse=True)]
        if not statuses:
            raise StatusError("NOT_FOUND", f"Could not find any versions of model {name}")
        if version is None:
            return statuses
        if version not in known:
            raise StatusError("NOT_FOUND", f"Could not find version {version} of model {name}")
        return [status for status in statuses if status.version == version]

    def names(self) -> list[str]:
        """The models that are configured."""
        with self._condition:
            return sorted(self._configs)

    def configs(self) -> list[ModelConfig]:
        """What is configured."""
        with self._condition:
            return list(self._configs.values())

    def reload(self, configs: Iterable[ModelConfig]) -> None:
        """Replaces the configuration. Raises StatusError, and then nothing is changed."""
        with self._condition:
            self._configure(configs)
            self._wake = True
            self._condition.notify_all()

    def wait_until_available(self, timeout: float = 60.0) -> None:
        """Returns when each model has a version that serves.

        Raises:
            StatusError: The error of a model all of whose versions failed; DEADLINE_EXCEEDED after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._condition:
            while waiting := [name for name in self._configs if not self._has_available_version(name)]:
                if not self._condition.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise StatusError("DEADLINE_EXCEEDED", f"no version to serve after {timeout:g} s: {waiting}")

    def close(self) -> None:
        """Stops the thread, waits for those who borrowed, and unloads everything."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join()
        for servable in self._all_servables():
            self._unload(servable, wait_for_users=True)

    def __enter__(self) -> "Manager":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _configure(self, configs: Iterable[ModelConfig]) -> None:
        configs_by_name = check_configs(configs)
        for config in configs_by_name.values():
            for label, version in config.labels.items():
                self._check_label(config.name, label, version)
        self._configs = configs_by_name
        self._labels = {config.name: dict(config.labels) for config in configs_by_name.values()}

    def _check_label(self, name: str, label: str, version: int) -> None:
        servable = self._servables.get(name, {}).get(version)
        is_new = label not in self._labels.get(name, {})
        if (servable and servable.state == "AVAILABLE") or (is_new and self.options.allow_labels_for_unavailable):
            return
        raise StatusError(
            "FAILED_PRECONDITION",
            f"Request to assign label to version {version} of model {name}, "
            "which is not currently available for inference",
        )

    def _find_servable(self, name: str, version: int | None, label: str | None) -> Servable:
        if not name:
            raise StatusError("INVALID_ARGUMENT", "ModelSpec has no name specified.")
        if label is not None:
            if label not in self._labels.get(name, {}):
                raise StatusError("INVALID_ARGUMENT", f"Unrecognized servable version label: {label}")
            version = self._labels[name][label]
        known = self._servables.get(name, {})
        serving = [number for number, servable in known.items() if servable.state == "AVAILABLE"]
        if version in serving or (version is None and serving):
            return known[max(serving) if version is None else version]
        wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise StatusError("NOT_FOUND", f"Servable not found for request: {wanted}")

    def _has_available_version(self, name: str) -> bool:
        known = self._servables.get(name, {}).values()
        if any(servable.state == "AVAILABLE" for servable in known):
            return True
        wanted = [servable for servable in known if servable.aspired]
        if wanted and all(servable.state == "END" and servable.error for servable in wanted):
            raise wanted[-1].error or StatusError("UNKNOWN", "no reason is known")
        return False

    def _watch(self) -> None:
        while not self._closing:
            self._poll()
            while not self._closing and self._step():
                pass
            with self._condition:
                if not self._closing and not self._wake:
                    self._condition.wait_for(self._should_wake, self._seconds_until_next_poll())
                self._wake = False

    def _should_wake(self) -> bool:
        return self._closing or self._wake or any(servable.may_unload() for servable in self._all_servables())

    def _seconds_until_next_poll(self) -> float:
        """Seconds until the next look at the disk, or the next try to load."""
        retry_delays = [
            servable.next_try - time.monotonic() for servable in self._all_servables() if servable.state == "LOADING"
        ]
        return max(0.0, min([self.options.poll_seconds, *retry_delays]))

    def _poll(self) -> None:
        """What is on disk becomes what is aspired."""
        for name in {*self._configs, *self._servables}:
            config = self._configs.get(name)
            try:
                present = find_versions(config.base_path) if config else {}
            except OSError as error:  # as TF Serving: nothing changes
                self._log_once(f"cannot look for versions of {name}: {error}")
                continue
            with self._condition:
                self._set_aspired(name, present, config.policy.select(present) if config else set())

    def _set_aspired(self, name: str, present: dict[int, Path], wanted: set[int]) -> None:
        known = self._servables.setdefault(name, {})
        for version in wanted - {version for version, known_servable in known.items() if known_servable.aspired}:
            if version not in known or known[version].state == "END":
                known[version] = Servable(name, version, present[version])
            known[version].aspired = True
        for version, servable in known.items():
            servable.aspired = version in wanted
        if not known:
            del self._servables[name]
        self._condition.notify_all()

    def _step(self) -> bool:
        """Loads or unloads one version; False where there is nothing to do now."""
        for servable in self._all_servables():
            if servable.aspired and servable.due():
                self._try_to_load(servable)
                return True
        for servable in self._all_servables():
            if self._is_unneeded(servable):
                servable.state = "UNLOADING"
            if servable.may_unload():
                self._unload(servable)
                return True
        return False

    def _is_unneeded(self, servable: Servable) -> bool:
        """Whether a version may go: nobody wants it, and one that is wanted serves (or none is wanted at all)."""
        if servable.aspired or servable.state not in ("AVAILABLE", "LOADING", "START"):
            return False
        wanted = [other for other in self._servables[servable.name].values() if other.aspired]
        return servable.session is None or not wanted or any(each.state == "AVAILABLE" for each in wanted)

    def _try_to_load(self, servable: Servable) -> None:
        self._set_state(servable, "LOADING")
        try:
            session = self._load(servable.path)
        except Exception as error:  # whatever a loader may raise is the state of this version
            status = error if isinstance(error, StatusError) else StatusError("INTERNAL", f"{error}")
            self._record_failure(servable, status)
            return
        servable.session, servable.error = session, None
        self._set_state(servable, "AVAILABLE")
        _log.info("%s version %d is available", servable.name, servable.version)

    def _record_failure(self, servable: Servable, error: StatusError) -> None:
        servable.tries += 1
        servable.next_try = time.monotonic() + self.options.retry_seconds
        servable.error = error
        last = servable.tries > self.options.max_retries
        _log.warning("%s version %d cannot be loaded (%s): %s", servable.name, servable.version, error.code, error)
        self._set_state(servable, "END" if last else "LOADING")

    def _unload(self, servable: Servable, wait_for_users: bool = False) -> None:
        with self._condition:
            if wait_for_users:
                self._condition.wait_for(lambda: not servable.num_users)
            session, servable.session = servable.session, None
            servable.aspired = False
        if session is not None:
            session.close()
            _log.info("%s version %d is unloaded", servable.name, servable.version)
        self._set_state(servable, "END")

    def _set_state(self, servable: Servable, state: str) -> None:
        with self._condition:
            servable.state = state
            self._condition.notify_all()

    def _all_servables(self) -> list[Servable]:
        with self._condition:
            return [known[number] for known in self._servables.values() for number in sorted(known)]

    def _log_once(self, message: str) -> None:
        if message not in self._logged:
            self._logged.add(message)
            _log.warning(message)


def configs_from_proto(config: Any) -> list[ModelConfig]:
    """The models of a parsed `models.config`. Raises INVALID_ARGUMENT with everything that is wrong with it."""
    problems = lint_models(config)
    if problems:
        raise StatusError("INVALID_ARGUMENT", "the configuration is refused: " + "; ".join(problems))
    return [
        ModelConfig(
            model.name,
            Path(model.base_path),
            _policy_from_proto(model.model_version_policy),
            dict(model.version_labels),
        )
        for model in config.model_config_list.config
    ]


def _policy_from_proto(policy: Any) -> VersionPolicy:
    match policy.WhichOneof("policy_choice"):
        case "all":
            return VersionPolicy.all_versions()
        case "specific":
            return VersionPolicy.specific(*policy.specific.versions)
        case "latest":
            return VersionPolicy.latest(policy.latest.num_versions)
    return VersionPolicy.latest()
