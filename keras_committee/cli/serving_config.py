"""`keras-committee serving-config`: write configuration files for TF Serving."""

import os
import re
from pathlib import Path

import click

from keras_committee.cli.options import HomePath, complete_exports, json_option, standard_options
from keras_committee.cli.output import print_json
from keras_committee.errors import RecipeError
from keras_committee.folder_kinds import FolderKind, explain_wrong_folder
from keras_committee.tables import print_text


@click.command()
@click.argument("model_dir", type=HomePath(), shell_complete=complete_exports)
@click.option("--out", required=True, type=HomePath(), metavar="DIR", help="Write the files to DIR.")
@click.option("--name", metavar="NAME", help="Name of the model in requests.", show_default="name of MODEL_DIR")
@click.option(
    "--base-path", metavar="DIR", help="MODEL_DIR as seen by the server.", show_default="absolute path of MODEL_DIR"
)
@click.option(
    "--versions",
    metavar="N,...",
    help="Versions to serve, such as 3 or 3,4.",
    show_default="the labeled versions, else the newest",
)
@click.option(
    "--version-label",
    "version_labels",
    metavar="NAME=VERSION",
    multiple=True,
    help="Label of a version, such as stable=3. May be repeated.",
)
@click.option(
    "--batch-sizes", default="1,8,32", show_default=True, metavar="N,...", help="Allowed batch sizes, ascending."
)
@click.option(
    "--batch-timeout-micros",
    default=2000,
    show_default=True,
    type=click.IntRange(0, 10**7),
    metavar="N",
    help="Maximum time to wait for a full batch, in microseconds.",
)
@click.option(
    "--num-batch-threads",
    default=2,
    show_default=True,
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Number of batches processed at the same time.",
)
@json_option
@standard_options
def serving_config(
    model_dir,
    out,
    name,
    base_path,
    versions,
    version_labels,
    batch_sizes,
    batch_timeout_micros,
    num_batch_threads,
    as_json,
):
    """Write configuration files for TF Serving.

    Writes and checks models.config, batching.config and monitoring.config for MODEL_DIR. To roll back, set --versions
    to an older version. New or moved labels take two steps: start the server with models.config, then replace it with
    models.labels.config once every version is AVAILABLE.
    """
    labeled_versions = dict(_parse_label(label) for label in version_labels)
    requested = _parse_numbers("--versions", versions) if versions else tuple(sorted(set(labeled_versions.values())))
    _check_versions_exist(model_dir, {*requested, *labeled_versions.values()})
    from keras_committee.tfserving.config import BatchingConfig, ServedModel, ServerConfig, write_config

    folder = Path(os.path.abspath(model_dir))
    model = ServedModel(
        name=name or folder.name,
        base_path=base_path or str(folder),
        versions=requested,
        labels=labeled_versions,
    )
    batching = BatchingConfig(
        allowed_batch_sizes=_parse_numbers("--batch-sizes", batch_sizes),
        batch_timeout_micros=batch_timeout_micros,
        num_batch_threads=num_batch_threads,
    )
    written = write_config(ServerConfig(models=(model,), batching=batching), out)
    if as_json:
        return print_json({"files": [str(path) for path in written], "steps": len(written) - 2})
    return _print_summary(written)


def _print_summary(written: list[Path]) -> None:
    for path in written:
        print_text(f"Wrote {path}")
    if len(written) > 3:
        print_text(
            "Labels need a second step. Start the server with --model_config_file_poll_wait_seconds, so that it reloads"
            f" models.config.\nOnce every version is AVAILABLE, run: mv {written[1]} {written[0]}"
        )


def _check_versions_exist(model_dir: str, versions: set[int]) -> None:
    from keras_committee.tfserving.versions import list_versions

    if explanation := explain_wrong_folder(Path(model_dir), FolderKind.MODEL):
        raise RecipeError(f"{model_dir} is not a model folder: {explanation}\n  No file was written.")
    available = list_versions(model_dir)
    if not available:
        raise RecipeError(f"{model_dir} has no versions. No file was written.")
    if missing := sorted(versions - set(available)):
        listing = ", ".join(map(str, available))
        raise RecipeError(f"{model_dir} has no version {missing[0]}. Available: {listing}. No file was written.")


def _parse_label(text: str) -> tuple[str, int]:
    name, _, version = text.partition("=")
    return name, _parse_numbers("--version-label", version)[0]


def _parse_numbers(option: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]{1,18}(,[0-9]{1,18})*", text):
        raise RecipeError(f"{option} must be comma-separated integers of at most 18 digits. Received: {text!r}")
    return tuple(int(part) for part in text.split(","))
