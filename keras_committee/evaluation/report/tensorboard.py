"""How does TensorBoard show the report: its pictures, and what the committees of the runs reach beside their knobs?"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from keras_committee.evaluation.report.sources import Source
from keras_committee.files import writing
from keras_committee.summaries import knobs_summary, picture_summary

_SUFFIX = ".report"
_METRICS = ("accuracy", "nll", "ece", "brier")


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
        _write(folder, [picture_summary(f"report/{name}", content) for name, content in pictures.items()])
        for source in sources:
            told = [knobs_summary(source.knobs, source.name), _scores(source)]
            _write(folder / source.name.replace("/", "-").strip("-."), told)


def _write(folder: Path, summaries: Sequence[Summary]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(str(folder), filename_suffix=_SUFFIX)
    try:
        for summary in summaries:
            writer.add_event(Event(wall_time=time.time(), step=0, summary=summary))
    finally:
        writer.close()


def _scores(source: Source) -> Summary:
    committee = source.evaluation["committees"][-1]
    values = {name: committee[name]["mean"] for name in _METRICS} | {"mflops": committee["mflops"]}
    return Summary(value=[Summary.Value(tag=f"committee/{name}", simple_value=value) for name, value in values.items()])
