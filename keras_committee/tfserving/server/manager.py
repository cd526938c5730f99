"""Models and their versions: what to serve, and loading, lending and unloading it."""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_committee.tfserving.drift import DriftMonitor, MonitoredSession
from keras_committee.tfserving.server.loading import load_version
from keras_committee.tfserving.tf_protocol import StatusError
from keras_committee.tfserving.versions import NAME_RULE, FolderState, find_versions, folder_state, is_valid_name

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VersionPolicy:
    """Which of the versions on disk to serve: `latest(n)`, `all_versions()` or `specific(...)`."""

    kind: str
    count: int = 1
    versions: tuple[int, ...] = ()

    @classmethod
    def latest(cls, count: int = 1) -> "VersionPolicy":
        """Serve the `count` versions with the largest numbers."""
        if count < 1:
            raise StatusError("INVALID_ARGUMENT", f"num_versions must be at least 1. Received: num_versions={count}")
        return cls("latest", count=count)

    @classmethod
    def all_versions(cls) -> "VersionPolicy":
        """Serve all versions."""
        return cls("all")

    @classmethod
    def specific(cls, *versions: int) -> "VersionPolicy":
        """Serve these versions, where they exist."""
        return cls("specific", versions=versions)

    def select(self, available: Iterable[int]) -> set[int]:
        """Return the versions to serve, out of the versions `available`."""
        if self.kind == "all":
            return set(available)
        if self.kind == "specific":
            return set(available) & set(self.versions)
        return set(sorted(available)[-self.count :])


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model to serve, as an entry of TF Serving's models.config.

    Attributes:
        name: Name of the model in requests: 1 to 128 of A-Z a-z 0-9 _ . -, and no leading dot.
        base_path: Absolute path of the folder with the version folders.
        policy: Which versions to serve.
        labels: dict of label -> version.
    """

    name: str
    base_path: Path
    policy: VersionPolicy = dataclasses.field(default_factory=VersionPolicy.latest)
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_valid_name(self.name):
            raise StatusError("INVALID_ARGUMENT", f"the name of a model must be {NAME_RULE}. Received: {self.name!r}")
        object.__setattr__(self, "base_path", Path(self.base_path))
        if not self.base_path.is_absolute():
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Expected model {self.name} to have an absolute path or URI; got base_path()={self.base_path}",
            )


def configs_from_proto(config: Any) -> list[ModelConfig]:
    """Return the models of a parsed `models.config`, as TF Serving reads it (server_core.cc).

    Raises:
        StatusError: INVALID_ARGUMENT if TF Serving would reject the configuration.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise StatusError("INVALID_ARGUMENT", "ModelServer does not yet support custom model config.")
    for model in config.model_config_list.config:
        if (platform := _platform(model)) != "tensorflow":
            raise StatusError("INVALID_ARGUMENT", f"Model {model.name} requests unsupported platform {platform}")
    return [
        ModelConfig(
            model.name,
            Path(model.base_path),
            _policy_from_proto(model.model_version_policy),
            dict(model.version_labels),
        )
        for model in config.model_config_list.config
    ]


@dataclasses.dataclass(frozen=True)
class ServableStatus:
    """Status of a version, as in GetModelStatus. `code` and `message` are the error of its last load."""

    version: int
    state: str
    code: str = "OK"
    message: str = ""


@dataclasses.dataclass(eq=False)
class Servable:
    """A version of a model.

    Borrowers read `name`, `version` and `session`; the other attributes belong to the manager.

    Attributes:
        name: Name of the model.
        version: Number of the version.
        path: The version folder.
        session: The loaded model, or None.
        state: START, then LOADING, AVAILABLE, UNLOADING and END.
        error: Error of the last load.
        aspired: Whether the version should be served.
        num_users: Borrowers at the moment.
        tries: Failed loads.
        next_try: When to load it, in monotonic seconds.
        files: State of the folder when it was last read.
        files_since: When `files` was first read, in monotonic seconds.
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
    next_try: float = 0.0
    files: FolderState | None = None
    files_since: float = 0.0

    def status(self) -> ServableStatus:
        error = self.error if self.state in ("LOADING", "END") else None
        code, message = (error.code, error.message) if error else ("OK", "")
        return ServableStatus(self.version, self.state, code, message)

    def due(self) -> bool:
        """Whether to load it now, for the first time or again."""
        return self.state in ("START", "LOADING") and time.monotonic() >= self.next_try

    def may_unload(self) -> bool:
        return self.state == "UNLOADING" and not self.num_users


@dataclasses.dataclass(frozen=True)
class ManagerOptions:
    """Timing of loads. The defaults are those of TF Serving.

    Attributes:
        poll_seconds: Seconds between two scans of the base paths. A version is loaded once its files have not changed
            for twice as long, since it may be a copy in progress; TF Serving does not wait.
        max_retries: Retries of a load that fails.
        retry_seconds: Seconds between retries.
        allow_labels_for_unavailable: Whether labels can be assigned to versions that are not loaded yet.
    """

    poll_seconds: float = 1.0
    max_retries: int = 5
    retry_seconds: float = 60.0
    allow_labels_for_unavailable: bool = False


class Manager:
    """Loads, lends and unloads the versions of the configured models.

    A thread scans the base paths. As in TF Serving, a new version is loaded before the old one is unloaded.

    Args:
        configs: The models.
        options: Timing of loads; None for the defaults.
        load: Maps a version folder to a session, or raises StatusError.

    Raises:
        StatusError: If two models have the same name, or labels are not allowed yet.
    """

    def __init__(
        self,
        configs: Iterable[ModelConfig],
        options: ManagerOptions | None = None,
        load: Callable[[Path], Any] = load_version,
    ):
        self._options = options or ManagerOptions()
        self._load = load
        self._condition = threading.Condition(threading.RLock())
        self._servables: dict[str, dict[int, Servable]] = {}
        self._configs: dict[str, ModelConfig] = {}
        self._is_reconfigured = self._closing = False
        self._set_configs(configs)
        self._logged: set[str] = set()
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)
        self._thread.start()

    def reload(self, configs: Iterable[ModelConfig], timeout: float = 0.0) -> None:
        """Replace the models and their labels, as TF Serving's ReloadConfig, and wait for models that are new.

        Args:
            configs: All models to serve from now on; others are unloaded.
            timeout: Maximum time to wait, in seconds; 0 does not wait.

        Raises:
            StatusError: INVALID_ARGUMENT or FAILED_PRECONDITION if the configuration is rejected, and nothing changes;
                UNKNOWN if no version of a new model can be loaded, DEADLINE_EXCEEDED after `timeout` seconds.
        """
        added = self._set_configs(configs)
        if timeout:
            self._wait_until_available(added, timeout, _not_available_error)

    @contextlib.contextmanager
    def borrow(self, name: str, version: int | None = None, label: str | None = None) -> Iterator[Servable]:
        """Lend an available version, which stays loaded within the context.

        Args:
            name: Name of the model.
            version: Number of the version; None for the largest one.
            label: Label of the version, instead of its number.

        Raises:
            StatusError: NOT_FOUND if there is no such version, INVALID_ARGUMENT for an unknown label.
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
        """Return the status of all versions of a model so far, newest first, or of one version.

        Raises:
            StatusError: NOT_FOUND if there is no such model or version.
        """
        with self._condition:
            known = self._servables.get(name, {})
            statuses = [known[number].status() for number in sorted(known, reverse=True)]
        if version is not None and version not in known:
            raise StatusError("NOT_FOUND", f"Could not find version {version} of model {name}")
        if not statuses:
            raise StatusError("NOT_FOUND", f"Could not find any versions of model {name}")
        if version is None:
            return statuses
        return [status for status in statuses if status.version == version]

    def drift_monitors(self) -> list[tuple[str, int, DriftMonitor]]:
        """Return model, version and monitor of each available version whose answers are compared with a reference."""
        return [
            (servable.name, servable.version, servable.session.monitor)
            for servable in self._all_servables()
            if isinstance(servable.session, MonitoredSession)
        ]

    def names(self) -> list[str]:
        """Return the names of the configured models."""
        return sorted(self._configs)

    def configs(self) -> list[ModelConfig]:
        """Return the configured models."""
        return list(self._configs.values())

    def wait_until_available(self, timeout: float = 60.0) -> None:
        """Wait until each model has an available version.

        Raises:
            StatusError: The error of a model all of whose versions failed; DEADLINE_EXCEEDED after `timeout` seconds.
        """
        self._wait_until_available(self._configs, timeout, lambda servable: servable.error)

    def _wait_until_available(
        self, names: Iterable[str], timeout: float, error_of: Callable[[Servable], StatusError | None]
    ) -> None:
        """Wait for an available version of each model. Raise `error_of` a version of a model all of which failed."""
        deadline = time.monotonic() + timeout
        with self._condition:
            while waiting := [name for name in names if not self._has_available_version(name, error_of)]:
                if not self._condition.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise StatusError("DEADLINE_EXCEEDED", f"no version to serve after {timeout:g} s: {waiting}")

    def close(self) -> None:
        """Stop the thread, wait for the borrowers and unload all versions."""
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

    def _find_servable(self, name: str, version: int | None, label: str | None) -> Servable:
        if not name:
            raise StatusError("INVALID_ARGUMENT", "ModelSpec has no name specified.")
        if label is not None:
            labels = self._configs[name].labels if name in self._configs else {}
            if label not in labels:
                raise StatusError("INVALID_ARGUMENT", f"Unrecognized servable version label: {label}")
            version = labels[label]
        known = self._servables.get(name, {})
        serving = [number for number, servable in known.items() if servable.state == "AVAILABLE"]
        if version in serving or (version is None and serving):
            return known[max(serving) if version is None else version]
        requested = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise StatusError("NOT_FOUND", f"Servable not found for request: {requested}")

    def _set_configs(self, configs: Iterable[ModelConfig]) -> set[str]:
        """Replace the models, unless the configuration is rejected; return the names of the new ones."""
        configs_by_name = check_configs(configs)
        with self._condition:
            for config in configs_by_name.values():
                for label, version in sorted(config.labels.items()):
                    self._check_label(config.name, label, version)
            added = set(configs_by_name) - set(self._configs)
            self._configs, self._is_reconfigured = configs_by_name, True
            self._condition.notify_all()
        return added

    def _check_label(self, name: str, label: str, version: int) -> None:
        """Raise FAILED_PRECONDITION unless the version is available, or may become available later."""
        current = self._configs[name].labels.get(label, version) if name in self._configs else version
        servable = self._servables.get(name, {}).get(version)
        is_available = servable is not None and servable.state == "AVAILABLE"
        if not is_available and not (self._options.allow_labels_for_unavailable and current == version):
            raise StatusError(
                "FAILED_PRECONDITION",
                f"Request to assign label to version {version} of model {name}, "
                "which is not currently available for inference",
            )

    def _has_available_version(self, name: str, error_of: Callable[[Servable], StatusError | None]) -> bool:
        known = self._servables.get(name, {}).values()
        if any(servable.state == "AVAILABLE" for servable in known):
            return True
        aspired = [servable for servable in known if servable.aspired]
        if aspired and all(servable.state == "END" and servable.error for servable in aspired):
            raise error_of(aspired[-1]) or StatusError("UNKNOWN", "no reason is known")
        return False

    def _watch(self) -> None:
        while not self._closing:
            self._poll()
            while not self._closing and self._step():
                pass
            with self._condition:
                if not self._closing:
                    self._condition.wait_for(self._should_wake, self._seconds_until_next_poll())

    def _should_wake(self) -> bool:
        return (
            self._closing or self._is_reconfigured or any(servable.may_unload() for servable in self._all_servables())
        )

    def _seconds_until_next_poll(self) -> float:
        """Return the seconds until the next scan, or the next try of a load."""
        retry_delays = [
            servable.next_try - time.monotonic()
            for servable in self._all_servables()
            if servable.state in ("START", "LOADING")
        ]
        return max(0.0, min([self._options.poll_seconds, *retry_delays]))

    def _poll(self) -> None:
        """Scan the base paths and mark the versions to serve."""
        with self._condition:
            self._is_reconfigured, configs = False, self._configs
            for name in self._servables.keys() - configs.keys():
                self._set_aspired(name, {}, set())
        for name, config in configs.items():
            try:
                folders = find_versions(config.base_path)
            except OSError as error:  # as in TF Serving, nothing changes
                self._log_once(f"cannot look for versions of {name}: {error}")
                continue
            with self._condition:
                if self._configs is configs:
                    self._set_aspired(name, folders, config.policy.select(folders))

    def _set_aspired(self, name: str, folders: dict[int, Path], aspired: set[int]) -> None:
        known = self._servables.setdefault(name, {})
        for version in aspired:
            # A version that was unloaded is loaded again; one whose load failed is not, as in TF Serving.
            if version not in known or (known[version].state == "END" and not known[version].aspired):
                known[version] = Servable(name, version, folders[version])
        for version, servable in known.items():
            servable.aspired = version in aspired
        self._condition.notify_all()

    def _step(self) -> bool:
        """Load or unload one version. Return False if there is nothing to do now."""
        for servable in self._all_servables():
            if servable.aspired and servable.due() and self._is_settled(servable):
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
        """Whether to unload a version: it is not aspired, and an aspired one is available or there is none."""
        if servable.aspired or servable.state not in ("AVAILABLE", "LOADING", "START"):
            return False
        aspired = [other for other in self._servables[servable.name].values() if other.aspired]
        return servable.session is None or not aspired or any(other.state == "AVAILABLE" for other in aspired)

    def _is_settled(self, servable: Servable) -> bool:
        """Whether the files of a version have not changed for some time. If not, it is due again later."""
        now, state, required = time.monotonic(), folder_state(servable.path), 2 * self._options.poll_seconds
        if state != servable.files:
            servable.files, servable.files_since = state, now
        # The clock of a network drive may differ from that of this machine.
        unchanged = max(now - servable.files_since, time.time() - state.changed_at)
        if unchanged >= required:
            return True
        servable.next_try = now + required - max(unchanged, 0)
        self._log_once(
            f"{servable.name} version {servable.version} is loaded once its files no longer change", logging.INFO
        )
        return False

    def _try_to_load(self, servable: Servable) -> None:
        self._set_state(servable, "LOADING")
        try:
            session = self._load(servable.path)
            if folder_state(servable.path) != servable.files:
                session.close()
                return  # loaded again once the files are settled
        except Exception as error:  # whatever the loader raises becomes the status of this version
            status = error if isinstance(error, StatusError) else StatusError("INTERNAL", f"{error}")
            self._record_failure(servable, status)
            return
        servable.session, servable.error = session, None
        self._set_state(servable, "AVAILABLE")
        _log.info("%s version %d is available", servable.name, servable.version)

    def _record_failure(self, servable: Servable, error: StatusError) -> None:
        servable.tries += 1
        servable.next_try = time.monotonic() + self._options.retry_seconds
        servable.error = error
        is_last_try = servable.tries > self._options.max_retries
        _log.warning(
            "%s version %d cannot be loaded (%s): %s", servable.name, servable.version, error.code, error.message
        )
        self._set_state(servable, "END" if is_last_try else "LOADING")

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

    def _log_once(self, message: str, level: int = logging.WARNING) -> None:
        if message not in self._logged:
            self._logged.add(message)
            _log.log(level, message)


def check_configs(configs: Iterable[ModelConfig]) -> dict[str, ModelConfig]:
    """Return the configs by name.

    Raises:
        StatusError: INVALID_ARGUMENT if two models have the same name.
    """
    configs_by_name: dict[str, ModelConfig] = {}
    for config in configs:
        if config.name in configs_by_name:
            raise StatusError("INVALID_ARGUMENT", f"Illegal to list model {config.name} multiple times in config list")
        configs_by_name[config.name] = config
    return configs_by_name


def _not_available_error(servable: Servable) -> StatusError:
    """Return the error of TF Serving for a new model that cannot be loaded."""
    identifier = f"{{name: {servable.name} version: {servable.version}}}"
    return StatusError(
        "UNKNOWN", f"1 model(s) did not become available: {{{{{identifier} due to error: {servable.error}}}, }}"
    )


def _platform(model: Any) -> str:
    """Return the platform of an entry of models.config, which may have the deprecated field `model_type`."""
    if not model.model_type:
        if not model.model_platform:
            raise StatusError(
                "INVALID_ARGUMENT",
                "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                f"ModelServerConfig::model_platform, model name is {model.name}",
            )
        return model.model_platform
    if model.model_platform:
        raise StatusError(
            "INVALID_ARGUMENT",
            "Illegal setting both ModelServerConfig::model_type (deprecated) and "
            f"ModelServerConfig::model_platform, model name is {model.name}",
        )
    if model.model_type != 1:  # ModelType.TENSORFLOW
        raise StatusError("INVALID_ARGUMENT", f"ModelServerConfig::model_type choice {model.model_type} not supported.")
    return "tensorflow"


def _policy_from_proto(policy: Any) -> VersionPolicy:
    match policy.WhichOneof("policy_choice"):
        case "all":
            return VersionPolicy.all_versions()
        case "specific":
            return VersionPolicy.specific(*policy.specific.versions)
        case "latest":
            return VersionPolicy.latest(max(policy.latest.num_versions, 1))
    return VersionPolicy.latest()
