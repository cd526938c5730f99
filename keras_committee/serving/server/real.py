"""How is TF Serving itself started, with the arguments that mean the same?"""

import shutil
from pathlib import Path

from keras_committee.errors import ResourceError

BINARY = "tensorflow_model_server"


def command(
    model: Path | None,
    ports: tuple[int, int],
    models: str | None = None,
    monitoring: str | None = None,
    batching: str | bool | None = None,
) -> list[str]:
    """The command line of TF Serving's binary.

    Args:
        model: Base path of one model, or None where `models` names the file that lists them.
        ports: Of the REST API and of gRPC.
        models: models.config
        monitoring: monitoring.config
        batching: batching.config, or True for batching with the defaults.

    Raises:
        ResourceError: Where it is not installed.
    """
    binary = shutil.which(BINARY)
    if binary is None:
        raise ResourceError(
            f"{BINARY} is not installed here. Nothing was started.\n  Leave --real away for the stand-in, or use the "
            "image tensorflow/serving: deploy/ has a compose file."
        )
    words = [binary, f"--rest_api_port={ports[0]}", f"--port={ports[1]}"]
    words += [f"--model_config_file={models}"] if models else []
    words += [f"--model_name={model.name}", f"--model_base_path={model}"] if model else []
    words += [f"--monitoring_config_file={monitoring}"] if monitoring else []
    words += ["--enable_batching"] if batching else []
    return words + ([f"--batching_parameters_file={batching}"] if isinstance(batching, str) else [])
