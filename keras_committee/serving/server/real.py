"""How is TF Serving itself started, with the arguments that mean the same?"""

import shutil
from pathlib import Path

from keras_committee.errors import ResourceError

BINARY = "tensorflow_model_server"


def command(
    model: Path | None, rest_port: int, grpc_port: int, models: str | None, monitoring: str | None, batching: str | None
) -> list[str]:
    """The command line of TF Serving's binary.

    Args:
        model: Base path of one model, or None where `models` names the file that lists them.
        rest_port: Of the REST API.
        grpc_port: Of gRPC.
        models: models.config
        monitoring: monitoring.config
        batching: batching.config

    Raises:
        ResourceError: Where it is not installed.
    """
    binary = shutil.which(BINARY)
    if binary is None:
        raise ResourceError(
            f"{BINARY} is not installed here. Nothing was started.\n  Leave --real away for the stand-in, or use the "
            "image tensorflow/serving: deploy/ has a compose file."
        )
    which = (
        [f"--model_config_file={models}"]
        if models
        else [f"--model_name={model.name}", f"--model_base_path={model}"]
        if model
        else []
    )
    more = [f"--monitoring_config_file={monitoring}"] if monitoring else []
    more += ["--enable_batching", f"--batching_parameters_file={batching}"] if batching else []
    return [binary, *which, f"--rest_api_port={rest_port}", f"--port={grpc_port}", *more]
