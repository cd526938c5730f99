"""How does TensorBoard show the report: its pictures, and the knobs of the runs beside what their committees reach?"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from keras_committee.evaluation.report.sources import Source
from keras_committee.files import writing

_SUFFIX = ".report"
_METRICS = ("accuracy", "nll", "ece", "brier", "mflops")


def write_tensorboard(folder: Path, pictures: Mapping[str, bytes], sources: Sequence[Source]) -> None:
    """Writes the pictures of the report, and for each run its knobs and the figures of its whole committee.

    Args:
        folder: Where; what an earlier report left there is replaced.
        pictures: PNG files by their names.
        sources: The runs.

    Raises:
        ResourceError: If it cannot be written.
    """
    with writing(folder):
        for old in folder.rglob(f"*{_SUFFIX}"):
            old.unlink()
        images = [Summary.Value(tag=f"report/{name}", image=_image(content)) for name, content in pictures.items()]
        _write(folder, [hparams.hparams_config_pb(_domains(sources), _columns()), Summary(value=images)])
        for source in sources:
            knobs = hparams.hparams_pb(_knobs(source), trial_id=source.name)
            _write(folder / source.name.replace("/", "-").strip("-."), [knobs, _scores(source)])


def _write(folder: Path, summaries: Sequence[Summary]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(str(folder), filename_suffix=_SUFFIX)
    try:
        for summary in summaries:
            writer.add_event(Event(wall_time=time.time(), step=0, summary=summary))
    finally:
        writer.close()


def _image(content: bytes) -> Summary.Image:
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))  # where PNG keeps them
    return Summary.Image(encoded_image_string=content, width=width, height=height, colorspace=4)


def _knobs(source: Source) -> dict[str, Any]:
    """The knobs as TensorBoard takes them: numbers, words and switches; all else as JSON."""
    return {
        knob: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for knob, value in source.knobs.items()
    }


def _domains(sources: Sequence[Source]) -> list[hparams.HParam]:
    return [hparams.HParam(knob) for knob in dict.fromkeys(knob for source in sources for knob in source.knobs)]


def _columns() -> list[hparams.Metric]:
    return [hparams.Metric(f"committee/{name}", display_name=f"committee {name}") for name in _METRICS]


def _scores(source: Source) -> Summary:
    committee = source.evaluation["committees"][-1]
    values = {name: committee[name]["mean"] for name in _METRICS if name != "mflops"}
    values["mflops"] = committee["mflops"]
    return Summary(value=[Summary.Value(tag=f"committee/{name}", simple_value=value) for name, value in values.items()])
