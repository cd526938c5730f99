"""`keras-committee export`: export a committee as a SavedModel for TF Serving."""

from pathlib import Path

import click

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
from keras_committee.files import read_record
from keras_committee.run import Run, lock_runs


@click.command()
@runs_argument
@moved_data_option
@click.option("--out", type=HomePath(), metavar="DIR", help="Model folder.", show_default="saved_models/RUN")
@click.option(
    "--selection",
    type=HomePath(),
    metavar="FILE",
    help="Selection file written by `select`.",
    show_default="all members",
)
@min_members_option
@json_option
@standard_options
def export(
    runs: tuple[str, ...],
    overrides: tuple[str, ...],
    out: str | None,
    selection: str | None,
    min_members: int | None,
    as_json: bool,
) -> None:
    """Export a committee as a SavedModel for TF Serving.

    The committee has the members of all RUNs, or those of --selection. Before the new version appears in the model
    folder, its predictions are verified against the Keras members in a separate process.
    """
    opened = [Run.open(run) for run in runs]
    with reserve_stdout_for_json(as_json):
        if overrides:
            with lock_runs(runs, overrides):
                pass
        from keras_committee.export.export import export as publish

        version = publish(opened, out, selection, min_members=min_members)
    manifest = read_record(version / "committee.json")
    if as_json:
        print_json({"version": str(version), **manifest})
        return
    click.echo(_format_summary(version, manifest))
    print_next_steps("serve", str(version.parent))


def _format_summary(version: Path, manifest: dict) -> str:
    model = version.parent
    count = len(manifest["members"])
    verified = manifest["verified"]
    image = '{"signature_name": "predict_bytes", "instances": [{"b64": "\'$(base64 -w0 IMAGE)\'"}]}'
    unknown = dict.fromkeys(member["name"] for member in manifest["members"] if member["mflops"] is None)
    note = f"note: the cost of {', '.join(unknown)} is unknown, as some layers cannot be counted. {HOW_TO_COUNT}"
    return "\n".join(
        [
            f"Exported a {manifest['kind']} of {count} member{'' if count == 1 else 's'} to {version}",
            f"Verified {verified['outputs']} outputs; largest difference {verified['largest_difference']:.1e}.",
            "To classify an image, with the export or with the server:",
            f"  {command_line('predict', str(model), 'IMAGE')}",
            f"  curl -d '{image}' http://127.0.0.1:8501/v1/models/{model.name}:predict",
            *([note] if unknown else []),
        ]
    )
