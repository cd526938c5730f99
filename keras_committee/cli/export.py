"""`keras-committee export`: export a committee for TF Serving or another runtime."""

from pathlib import Path
from typing import Literal

import click

from keras_committee import api
from keras_committee.cli.options import (
    HomePath,
    json_option,
    min_members_option,
    moved_data_option,
    runs_argument,
    standard_options,
)
from keras_committee.cli.output import command_line, print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.costs import HOW_TO_COUNT
from keras_committee.export import formats
from keras_committee.precision import EXPORT_PRECISIONS
from keras_committee.tables import print_blocks, print_text


class _Member(click.ParamType):
    """Index of a member, or "best"."""

    name = "member"

    def convert(self, value, param, ctx):
        if value == "best" or isinstance(value, int):
            return value
        if not value.isdecimal():
            self.fail(f"must be the index of a member, or best. Received: {value!r}")
        return int(value)


@click.command()
@runs_argument
@moved_data_option
@click.option(
    "--out",
    type=HomePath(),
    metavar="DIR",
    help="Model folder.",
    show_default="saved_models/RUN, or such as onnx_models/RUN; of one member saved_models/RUN_member_N",
)
@click.option(
    "--format",
    "model_format",
    type=click.Choice(formats.FORMATS),
    default=formats.SAVED_MODEL,
    show_default=True,
    help="Format: saved-model for TF Serving; onnx, litert and openvino, from raw pixels to predictions in float32, "
    "for ONNX Runtime, LiteRT and OpenVINO.",
)
@click.option(
    "--selection",
    type=HomePath(),
    metavar="FILE",
    help="Selection file written by `select`.",
    show_default="all members",
)
@click.option(
    "--member",
    type=_Member(),
    metavar="N|best",
    help="Export one member alone: its index, or best for the one of the highest validation accuracy.",
)
@min_members_option
@click.option(
    "--input-dtype",
    type=click.Choice(formats.INPUT_DTYPES),
    default="float32",
    show_default=True,
    help="Type of the pixels that a model in onnx, litert or openvino takes. A saved-model has a signature for each.",
)
@click.option(
    "--precision",
    type=click.Choice(EXPORT_PRECISIONS),
    default="float32",
    show_default=True,
    help="Precision of convolutions and matrix products. auto: bfloat16 if this machine multiplies matrices in it and "
    "the accuracy permits it.",
)
@click.option(
    "--max-accuracy-drop",
    type=click.FloatRange(0, 100, min_open=True),
    default=0.2,
    show_default=True,
    metavar="POINTS",
    help="In bfloat16, publish only if the upper end of the 95 % interval of the accuracy lost against float32, on the "
    "validation images, is below this.",
)
@json_option
@standard_options
def export(
    runs: tuple[str, ...],
    overrides: tuple[str, ...],
    out: str | None,
    model_format: str,
    selection: str | None,
    member: int | Literal["best"] | None,
    min_members: int | None,
    input_dtype: str,
    precision: str,
    max_accuracy_drop: float,
    as_json: bool,
) -> None:
    """Export a committee for TF Serving or another runtime.

    The committee has the members of all RUNs, those of --selection, or one --member. Before the new version appears in
    the model folder, its predictions are verified against the Keras members in a separate process.
    """
    with reserve_stdout_for_json(as_json):
        result = api.export(
            runs,
            out=out,
            selection=selection,
            member=member,
            format=model_format,
            input_dtype=input_dtype,
            precision=precision,
            max_accuracy_drop=max_accuracy_drop,
            allow_incomplete=min_members,
            moved_data=overrides,
        )
    if as_json:
        print_json(result.document)
        return
    print_blocks(result.blocks())
    print_text("\n".join(_format_usage(result.path, result.document)))
    if model_format == formats.SAVED_MODEL:
        print_next_steps("serve", str(result.path.parent))


def _format_usage(version: Path, manifest: dict) -> list[str]:
    """Return how to classify an image, and which costs are unknown."""
    unknown = dict.fromkeys(member["name"] for member in manifest["members"] if member["mflops"] is None)
    note = f"note: the cost of {', '.join(unknown)} is unknown, as some layers cannot be counted. {HOW_TO_COUNT}"
    is_saved_model = manifest["model_format"] == formats.SAVED_MODEL
    usage = _format_requests(version.parent) if is_saved_model else _format_call(version, manifest)
    return [*usage, *([note] if unknown else [])]


def _format_requests(model: Path) -> list[str]:
    return [
        "To classify an image, with the export or with the server:",
        f"  {command_line('predict', str(model), 'IMAGE')}",
        # As an argument of curl, a large image would be too long for the system.
        """  echo '{"signature_name": "predict_bytes", "instances":' \\""",
        """    '[{"b64": "'$(base64 -w0 IMAGE)'"}]}' |""",
        f"    curl -d @- http://127.0.0.1:8501/v1/models/{model.name}:predict",
    ]


def _format_call(version: Path, manifest: dict) -> list[str]:
    height, width, channels = (manifest["image"][name] for name in ("height", "width", "channels"))
    return [
        "To classify an image:",
        f"  {command_line('predict', str(version.parent), 'IMAGE')}",
        f"In Python, for {manifest['image']['dtype']} pixels (images, {height}, {width}, {channels}) from 0 to 255:",
        *(f"  {line}" for line in formats.python_call(manifest["model_format"], version)),
    ]
