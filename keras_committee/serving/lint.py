"""What would TF Serving refuse, or regret, in its three configuration files?

Each function takes a parsed message and returns its problems, none where all is well. Source: tensorflow/serving,
server_core.cc, bundle_factory_util.cc and file_system_storage_path_source.cc; serving#1608 on labels, #1565 on the
empty list.
"""

import posixpath
import re
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


def lint_models(config: Any) -> list[str]:
    """The problems of a `ModelServerConfig`."""
    models = list(config.model_config_list.config)
    if not models:
        return ["it lists no model: a server told so unloads what it serves, or waits for ever"]
    names = [model.name for model in models]
    problems = [f"two models are named {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
    for model in models:
        problems += [f"model {model.name!r}: {problem}" for problem in _lint_model(model)]
    return problems


def lint_batching(batching: Any) -> list[str]:
    """The problems of a `BatchingParameters`."""
    problems = [f"{name} is below {least}" for name, least in _LEAST.items() if _below(batching, name, least)]
    sizes = list(batching.allowed_batch_sizes)
    splits = batching.enable_large_batch_splitting.value
    if batching.HasField("max_execution_batch_size") and not splits:
        problems.append("max_execution_batch_size counts only with enable_large_batch_splitting")
    if not batching.HasField("max_batch_size"):
        problems.append("max_batch_size is missing: the server would take 1000")
    if sizes != sorted(set(sizes)) or any(size < 1 for size in sizes):
        problems.append(f"allowed_batch_sizes must be positive and increase. They are {sizes}")
    return problems + _lint_last(batching, sizes, splits)


def lint_monitoring(monitoring: Any) -> list[str]:
    """The problems of a `MonitoringConfig`."""
    prometheus = monitoring.prometheus_config
    problems = [] if prometheus.enable else ["prometheus_config is not enabled: nothing would be measured"]
    if prometheus.path and not prometheus.path.startswith("/"):
        problems.append(f"the path of the metrics must begin with /. It is {prometheus.path!r}")
    return problems


_LEAST = {
    "max_batch_size": 1,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 1,
    "num_batch_threads": 1,
    "max_execution_batch_size": 1,
}


def _below(batching: Any, name: str, least: int) -> bool:
    return batching.HasField(name) and getattr(batching, name).value < least


def _lint_last(batching: Any, sizes: list[int], splits: bool) -> list[str]:
    bound = "max_batch_size"
    if splits and batching.HasField("max_execution_batch_size"):
        bound = "max_execution_batch_size"
    most = getattr(batching, bound).value
    if sizes and sizes[-1] != most:
        return [f"the last of allowed_batch_sizes must be {bound}, {most}. It is {sizes[-1]}"]
    return []


def _lint_model(model: Any) -> list[str]:
    problems = []
    if not _NAME.fullmatch(model.name):
        problems.append("a name is 1 to 128 of A-Z a-z 0-9 _ . - and does not begin with a dot")
    if not posixpath.isabs(model.base_path):
        problems.append(f"base_path must be absolute. It is {model.base_path!r}")
    elif posixpath.normpath(model.base_path) != model.base_path.rstrip("/"):
        problems.append(f"base_path must hold no '.', '..' or '//'. It is {model.base_path!r}")
    if model.model_platform != "tensorflow":
        problems.append(f"model_platform must be 'tensorflow'. It is {model.model_platform!r}")
    return problems + _lint_policy(model) + _lint_labels(model)


def _lint_policy(model: Any) -> list[str]:
    policy = model.model_version_policy
    versions = list(policy.specific.versions)
    problems = []
    if policy.WhichOneof("policy_choice") == "specific" and not versions:
        problems.append("its policy is `specific` without a version: nothing would be served")
    if len(set(versions)) != len(versions) or any(version < 0 for version in versions):
        problems.append(f"versions must be different and not negative. They are {versions}")
    if policy.WhichOneof("policy_choice") == "latest" and policy.latest.num_versions < 1:
        problems.append("its policy is `latest` with no version: num_versions must be at least 1")
    return problems


def _lint_labels(model: Any) -> list[str]:
    policy, labels = model.model_version_policy, dict(model.version_labels)
    problems = [f"no request can name the label {name!r}" for name in sorted(labels) if not _NAME.fullmatch(name)]
    choice = policy.WhichOneof("policy_choice")
    if labels and choice not in ("specific", "all"):
        problems.append("labels need the policy `specific`: under `latest` the next version unloads what they name")
    if choice != "specific":
        return problems
    loaded = set(policy.specific.versions)
    return problems + [
        f"label {name!r} names version {version}, which is not loaded: {sorted(loaded)} are"
        for name, version in sorted(labels.items())
        if version not in loaded
    ]
