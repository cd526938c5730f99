"""`keras-committee serving-config`: with which files does TF Serving serve an exported model?"""

import re
from pathlib import Path

import click

from keras_committee.cli import options
from keras_committee.cli.options import json_option, standard_options
from keras_committee.cli.output import print_json
from keras_committee.errors import RecipeError


@click.command()
@click.argument("model_dir", type=click.Path(), shell_complete=options.complete_exports)
@click.option(
    "--out", required=True, type=click.Path(), metavar="DIR", help="Folder for models, batching and monitoring.config."
)
@click.option("--name", metavar="NAME", help="What requests call the model.  [default: the folder's name]")
@click.option("--base-path", metavar="DIR", help="MODEL_DIR as the server sees it.  [default: its absolute path]")
@click.option(
    "--versions", metavar="N,...", help="Serve these, such as 3 or 3,4.  [default: the labelled ones, else the newest]"
)
@click.option(
    "--version-label",
    "version_labels",
    metavar="NAME=VERSION",
    multiple=True,
    help="Such as stable=3; may be repeated.",
)
@click.option(
    "--batch-sizes",
    default="1,8,32",
    show_default=True,
    metavar="N,...",
    help="Sizes of a batch; the last is the most.",
)
@click.option(
    "--batch-timeout-micros",
    default=2000,
    show_default=True,
    type=click.IntRange(0, 10**7),
    metavar="N",
    help="Microseconds.",
)
@click.option(
    "--num-batch-threads",
    default=2,
    show_default=True,
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Batches at once.",
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
    """Write and check the files that TF Serving starts with.

    A rollback is `--versions` with an older one. New or moved labels take two steps: the server loads models.config
    first, and models.labels.config replaces it once every version is AVAILABLE.
    """
    from keras_committee.tfserving.config import BatchingConfig, ServedModel, ServerConfig, write_config

    labeled_versions = dict(_parse_label(label) for label in version_labels)
    requested = _parse_numbers("--versions", versions) if versions else tuple(sorted(set(labeled_versions.values())))
    _check_versions_exist(model_dir, {*requested, *labeled_versions.values()})
    folder = Path(model_dir).absolute()
    model = ServedModel(
        name=name or folder.name,
        base_path=base_path or str(folder.resolve()),
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
        click.echo(f"wrote {path}")
    if len(written) > 3:
        click.echo(
            "Labels need a second step. The server reads models.config anew with --model_config_file_poll_wait_seconds;"
            f"\nonce every version is AVAILABLE: mv {written[1]} {written[0]}"
        )


def _check_versions_exist(model_dir: str, versions: set[int]) -> None:
    from keras_committee.tfserving.config import list_versions

    available = list_versions(model_dir)
    missing = sorted(versions - set(available))
    if missing or not available:
        raise RecipeError(
            f"{model_dir} has no version {missing[0] if missing else 'at all'}. It has: "
            f"{', '.join(map(str, available)) or 'none'}. Nothing was written."
        )


def _parse_label(text: str) -> tuple[str, int]:
    name, _, version = text.partition("=")
    return name, _parse_numbers("--version-label", version)[0]


def _parse_numbers(option: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]{1,18}(,[0-9]{1,18})*", text):
        raise RecipeError(f"{option} takes whole numbers of at most 18 digits. Received: {text!r}")
    return tuple(int(part) for part in text.split(","))
