"""Which models does a `ModelServerConfig` ask for?"""

from pathlib import Path
from typing import Any

from keras_committee.serving.server.versions import ModelConfig, Policy
from keras_committee.tfserving.config import lint_models
from keras_committee.tfserving.tf_protocol import StatusError


def read_configs(config: Any) -> list[ModelConfig]:
    """The models of a parsed `models.config`. Raises INVALID_ARGUMENT with everything that is wrong with it."""
    problems = lint_models(config)
    if problems:
        raise StatusError("INVALID_ARGUMENT", "the configuration is refused: " + "; ".join(problems))
    return [
        ModelConfig(model.name, Path(model.base_path), _policy(model.model_version_policy), dict(model.version_labels))
        for model in config.model_config_list.config
    ]


def _policy(policy: Any) -> Policy:
    match policy.WhichOneof("policy_choice"):
        case "all":
            return Policy.everything()
        case "specific":
            return Policy.specific(*policy.specific.versions)
        case "latest":
            return Policy.latest(policy.latest.num_versions)
    return Policy.latest()
