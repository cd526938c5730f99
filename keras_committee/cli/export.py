"""`keras-committee export`: how does a committee become a version that TF Serving loads?"""

import json
from pathlib import Path

import click

from keras_committee.cli import options
from keras_committee.cli.options import json_option, min_members_option, standard_options
from keras_committee.cli.output import command_line, print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.run import Run


@click.command()
@click.argument(
    "runs", metavar="RUN...", type=click.Path(), nargs=-1, required=True, shell_complete=options.complete_runs
)
@click.option("--out", type=click.Path(), metavar="DIR", help="The model's folder. [default: saved_models/RUN]")
@click.option("--selection", type=click.Path(), metavar="FILE", help="A selection.json. [default: all members]")
@min_members_option
@json_option
@standard_options
def export(
    runs: tuple[str, ...], out: str | None, selection: str | None, min_members: int | None, as_json: bool
) -> None:
    """Publish the committee of all RUNs as a version for TF Serving.

    It is verified before it appears: asked again in a process of its own, it must answer as the members do.
    """
    opened = [Run.open(run) for run in runs]
    with reserve_stdout_for_json(as_json):
        from keras_committee.export.export import export as publish

        version = publish(opened, out, selection, min_members=min_members)
    manifest = json.loads((version / "committee.json").read_bytes())
    if as_json:
        print_json({"version": str(version), **manifest})
        return
    click.echo(_format_summary(version, manifest))
    print_next_steps("serve", str(version.parent))


def _format_summary(version: Path, manifest: dict) -> str:
    model = version.parent
    image = '{"signature_name": "predict_bytes", "instances": [{"b64": "\'$(base64 -w0 IMAGE)\'"}]}'
    url = f"http://127.0.0.1:8501/v1/models/{model.name}:predict"
    return "\n".join(
        [
            f"{version}",
            f"{manifest['kind']} of {len(manifest['members'])}, verified: {manifest['verified']['outputs']} outputs, "
            f"largest difference {manifest['verified']['largest_difference']:.1e}. Ask it, or once it is served:",
            f"  {command_line('predict', str(model), 'IMAGE')}",
            f"  curl -d '{image}' {url}",
        ]
    )
