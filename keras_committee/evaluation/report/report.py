"""How does the report of one or more runs come about: the page, its pictures as files, and in TensorBoard?"""

import dataclasses
import importlib.resources
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from keras_committee.evaluation.report import sections_accuracy, sections_predictions, sections_runs
from keras_committee.evaluation.report.layout import Section, percent, plural
from keras_committee.evaluation.report.run_data import Panel, Source, gather_panel, read_sources
from keras_committee.figures.style import DARK_SERIES, FRONT, INK, LINE, NARROW, PAPER, QUIET, SERIES, WIDE, Picture
from keras_committee.files import now, write_file, writing
from keras_committee.run import Run
from keras_committee.summaries import knobs_summary, picture_summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was written.

    Attributes:
        page: `index.html`.
        pictures: The PNG files.
        tensorboard: The folder of its event files.
        sentences: What each section says, by its name.
    """

    page: Path
    pictures: tuple[Path, ...]
    tensorboard: Path
    sentences: dict[str, str]


def write_report(
    runs: Sequence[Run],
    out: Path,
    selections: Sequence[Path] = (),
    *,
    split: str = "test",
    min_members: int | None = None,
    allow_twins: bool = False,
) -> Report:
    """Writes `index.html`, the same pictures as PNG files and `tensorboard/` into the folder `out`.

    Executes the recipes in the run folders; the caller holds the locks of the folders.

    Args:
        runs: At least one; those of one architecture are taken together.
        out: A folder; it is made where needed.
        selections: Files that `keras-committee select` wrote, of members of these runs.
        split: `"train"`, `"validation"` or `"test"`.
        min_members: As in `cast_votes`.
        allow_twins: Whether members may have identical weights.

    Raises:
        IncompleteError: If a run has too few members.
        DataError: If data cannot be read, or the examples of the runs differ.
        RecipeError: If the classes of the runs differ.
        RunError: If a selection is none, or has a member that is in none of the runs.
        VerificationError: If a member's votes are no votes, or two members of a run have identical weights.
        ResourceError: If the report cannot be written.
    """
    sources = read_sources(runs, split, min_members=min_members, allow_twins=allow_twins)
    panel = gather_panel(sources, split, selections)
    sections, examples = sections_of(panel)
    page = page_of(panel, sections, examples)
    pictures = {picture.name: picture.png() for picture in pictures_of(sections)}
    for name, content in pictures.items():
        write_file(out / f"{name}.png", content)
    write_tensorboard(out / "tensorboard", pictures, sources)
    write_file(out / "index.html", page.encode())  # at last: it shows that the report is whole
    return Report(
        page=out / "index.html",
        pictures=tuple(out / f"{name}.png" for name in pictures),
        tensorboard=out / "tensorboard",
        sentences={section.name: " ".join(block.sentence for block in section.blocks) for section in sections},
    )


def sections_of(panel: Panel) -> tuple[list[Section], tuple[sections_predictions.Example, ...]]:
    """The sections in their order, without those that the runs have nothing for, and the disputed images."""
    divided = sections_predictions.disputed_section(panel)
    sections = [
        sections_accuracy.cost_section(panel.series, panel.chosen, panel.split, len(panel.labels)),
        sections_accuracy.size_section(panel.series),
        sections_accuracy.cascade_section(panel.chosen),
        sections_accuracy.members_section(panel.members, panel.split, len(panel.labels)),
        sections_predictions.reliability_section(panel),
        sections_runs.calibration_section(panel.sources),
        sections_predictions.diversity_section(panel),
        divided[0] if divided else None,
        sections_predictions.confusion_section(panel),
        sections_runs.robustness_section(panel.sources),
        sections_runs.learning_section(panel.sources),
        sections_runs.depth_section(panel.sources),
        sections_runs.card_section(panel.sources),
    ]
    return [section for section in sections if section is not None], divided[1] if divided else ()


def pictures_of(sections: Sequence[Section]) -> list[Picture]:
    return [picture for section in sections for block in section.blocks for picture in block.pictures]


def page_of(panel: Panel, sections: Sequence[Section], examples: Sequence[sections_predictions.Example]) -> str:
    """The page: whatever comes from data is escaped."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["tied"] = _tied
    source = importlib.resources.files(__package__ or "").joinpath("template.html.j2").read_text("utf-8")
    return environment.from_string(source).render(
        title=_title(panel),
        subtitle=_subtitle(panel),
        tiles=_tiles(panel),
        sections=sections,
        examples=examples,
        svg=_svg,
        percent=percent,
        ink={"ink": INK, "quiet": QUIET, "line": LINE, "front": FRONT, "paper": PAPER},
        series=list(zip(SERIES, DARK_SERIES, strict=True)),
        made=now()[:16].replace("T", " "),
    )


def _svg(picture: Picture) -> dict[str, Any]:
    # Markup that matplotlib wrote, which has escaped all words in it.
    return {name: markupsafe.Markup(picture.svg(width)) for name, width in (("wide", WIDE), ("narrow", NARROW))}


def _tied(text: str) -> str:
    """No line is broken between a number and its unit."""
    for unit in ("%", "MFLOPs", "points"):
        text = text.replace(f" {unit}", f"\N{NO-BREAK SPACE}{unit}")
    return text.replace("± ", "±\N{NO-BREAK SPACE}")


def _title(panel: Panel) -> str:
    recipes = dict.fromkeys(source.environment["recipe"] for source in panel.sources)
    return ", ".join(recipes)


def _subtitle(panel: Panel) -> str:
    runs = plural(len(panel.sources), "run")
    return (
        f"{plural(len(panel.members), 'member').capitalize()} of {runs}, {len(panel.labels):,} {panel.split} images,"
        f" {len(panel.classes)} classes."
    )


def _tiles(panel: Panel) -> list[tuple[str, str, str]]:
    """The figures at the top: what, how much, of whom."""
    singles = max((one for one in panel.series if not one.mixed), key=lambda one: one.single["accuracy"]["mean"])
    best = max(panel.series, key=lambda one: one.whole["accuracy"]["mean"])
    tiles = [
        (
            "one network",
            percent(singles.single["accuracy"]["mean"]),
            f"{singles.name}, {_cost(singles.single['mflops'])}",
        ),
        (
            "best committee",
            percent(best.whole["accuracy"]["mean"]),
            f"{best.whole['size']} x {best.name}, {_cost(best.whole['mflops'])}",
        ),
    ]
    tiles = tiles[:1] if best.whole["size"] == 1 else tiles
    return tiles + [
        (each.name, percent(each.scores["accuracy"]), f"{_cost(each.mflops)} on average") for each in panel.chosen
    ]


def _cost(mflops: float) -> str:
    return f"{mflops:,.0f} MFLOPs" if mflops >= 10 else f"{mflops:.2g} MFLOPs"


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
