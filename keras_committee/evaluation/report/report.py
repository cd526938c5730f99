"""Write the report of one or more runs: an HTML page, its figures as PNG files, and TensorBoard events."""

import dataclasses
import importlib.resources
import math
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
from keras_committee.evaluation.report.layout import Section, count_with_noun, format_percent
from keras_committee.evaluation.report.model_card import render_model_card
from keras_committee.evaluation.report.run_data import (
    ReportData,
    RunData,
    SelectedCommittee,
    best_committee,
    load_report_data,
    load_run_data,
)
from keras_committee.figures.style import (
    BACKGROUND,
    DARK_SERIES_COLORS,
    FOREGROUND,
    GRID_LINE,
    MUTED,
    NARROW_INCHES,
    PARETO_FRONT,
    SERIES_COLORS,
    WIDE_INCHES,
    Picture,
)
from keras_committee.files import translate_os_errors, utc_timestamp, write_file
from keras_committee.folder_kinds import MODEL_CARD_FILE
from keras_committee.metrics.selective import SELECTIVE_METRICS, selective_metrics
from keras_committee.progress import track
from keras_committee.run import Run
from keras_committee.summaries import hparams_summary, image_summary

_EVENT_FILE_SUFFIX = ".report"
_METRICS = ("accuracy", "nll", "ece", "brier")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Paths and texts of a written report.

    Attributes:
        page: `index.html`.
        pictures: PNG files of the figures.
        tensorboard: Folder of the event files.
        sentences: Description of each section, by section name.
        drawings: The figures.
    """

    page: Path
    pictures: tuple[Path, ...]
    tensorboard: Path
    sentences: dict[str, str]
    drawings: tuple[Picture, ...]


def write_report(
    runs: Sequence[Run],
    out: Path,
    selections: Sequence[Path] = (),
    *,
    split: str | None = None,
    min_members: int | None = None,
    allow_duplicate_weights: bool = False,
    model_card: bool = False,
) -> Report:
    """Write `index.html`, the figures as PNG files and `tensorboard/` to the folder `out`.

    Executes the recipes in the run folders; the caller holds the locks of the folders.

    Args:
        runs: At least one run; members of one architecture are combined across runs.
        out: Target folder, created if necessary.
        selections: Selection files with members of these runs.
        split: `"train"`, `"validation"` or `"test"`; None uses `"test"`, or `"validation"` if a run has no test split.
        min_members: As in `load_or_compute_predictions`.
        allow_duplicate_weights: Whether members may have identical weights.
        model_card: Whether to write `README.md`, too; see `model_card.render_model_card`.

    Raises:
        IncompleteError: If a run has too few members.
        DataError: If data cannot be read, or the examples of the runs differ.
        RecipeError: If the classes of the runs differ.
        RunError: If a selection file is invalid, or has a member that belongs to none of the runs.
        VerificationError: If predictions are invalid, or two members of a run have identical weights.
        ResourceError: If the report cannot be written.
    """
    run_data = load_run_data(
        runs, split, selections, min_members=min_members, allow_duplicate_weights=allow_duplicate_weights
    )
    report_data = load_report_data(run_data, run_data[0].evaluation["split"], selections)
    sections, examples = build_sections(report_data)
    page = render_page(report_data, sections, examples)
    drawn = collect_pictures(sections)
    pictures = {picture.name: picture.png() for picture in track(drawn, f"drawing {len(drawn)} figures", len(drawn))}
    for name, content in pictures.items():
        write_file(out / f"{name}.png", content)
    write_tensorboard(out / "tensorboard", pictures, run_data, report_data.selected)
    if model_card:
        write_file(out / MODEL_CARD_FILE, render_model_card(report_data).encode())
    write_file(out / "index.html", page.encode())  # last, because it marks the report as complete
    return Report(
        page=out / "index.html",
        pictures=tuple(out / f"{name}.png" for name in pictures),
        tensorboard=out / "tensorboard",
        sentences={section.name: " ".join(block.sentence for block in section.blocks) for section in sections},
        drawings=tuple(drawn),
    )


def build_sections(
    report_data: ReportData,
) -> tuple[list[Section], tuple[sections_predictions.DisagreementExample, ...]]:
    """Return the sections for which the runs have data, and the images with the most disagreement."""
    disagreements = sections_predictions.disagreements_section(report_data)
    sections = [
        sections_accuracy.cost_section(
            report_data.series, report_data.selected, report_data.split, len(report_data.labels)
        ),
        sections_accuracy.size_section(report_data.series),
        sections_accuracy.cascade_section(report_data.selected),
        sections_accuracy.members_section(report_data.members, report_data.split, len(report_data.labels)),
        sections_predictions.reliability_section(report_data),
        sections_runs.calibration_section(report_data.runs),
        sections_predictions.selective_section(report_data),
        sections_predictions.diversity_section(report_data),
        disagreements[0] if disagreements else None,
        sections_predictions.confusion_section(report_data),
        sections_predictions.label_errors_section(report_data),
        sections_runs.robustness_section(report_data.runs),
        sections_runs.training_curves_section(report_data.runs),
        sections_runs.depth_section(report_data.runs),
        sections_runs.run_summary_section(report_data.runs),
    ]
    return [section for section in sections if section is not None], disagreements[1] if disagreements else ()


def collect_pictures(sections: Sequence[Section]) -> list[Picture]:
    return [picture for section in sections for block in section.blocks for picture in block.pictures]


def render_page(
    report_data: ReportData, sections: Sequence[Section], examples: Sequence[sections_predictions.DisagreementExample]
) -> str:
    """Return the HTML page; text from data is escaped."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["nonbreaking"] = _nonbreaking
    template = importlib.resources.files(__package__ or "").joinpath("template.html.j2").read_text("utf-8")
    return environment.from_string(template).render(
        title=_title(report_data),
        subtitle=_subtitle(report_data),
        tiles=_kpi_tiles(report_data),
        sections=sections,
        examples=examples,
        svg=_svg,
        percent=format_percent,
        theme={
            "foreground": FOREGROUND,
            "muted": MUTED,
            "grid": GRID_LINE,
            "front": PARETO_FRONT,
            "background": BACKGROUND,
        },
        series=list(zip(SERIES_COLORS, DARK_SERIES_COLORS, strict=True)),
        written_at=utc_timestamp()[:16].replace("T", " "),
    )


def write_tensorboard(
    folder: Path, pictures: Mapping[str, bytes], runs: Sequence[RunData], selected: Sequence[SelectedCommittee] = ()
) -> None:
    """Write the figures, the scores of the selections, and for each run its parameters and those of its committee.

    Args:
        folder: Target folder; event files of an earlier report there are replaced.
        pictures: Content of PNG files, by name.
        runs: The runs.
        selected: The selections.

    Raises:
        ResourceError: If the files cannot be written.
    """
    with translate_os_errors(folder):
        for stale_file in folder.rglob(f"*{_EVENT_FILE_SUFFIX}"):
            stale_file.unlink()
        images = [image_summary(f"report/{name}", content) for name, content in pictures.items()]
        _write_events(folder, [*images, *map(_selection_summary, selected)])
        for run in runs:
            summaries = [hparams_summary(run.parameters, run.name), _committee_summary(run)]
            _write_events(folder / run.name.replace("/", "-").strip("-."), summaries)


def _svg(picture: Picture) -> dict[str, Any]:
    # Markup written by Matplotlib, which escapes all text in it.
    return {
        name: markupsafe.Markup(picture.svg(width))
        for name, width in (("wide", WIDE_INCHES), ("narrow", NARROW_INCHES))
    }


def _nonbreaking(text: str) -> str:
    """Prevent line breaks between a number and its unit."""
    for unit in ("%", "MFLOPs", "points"):
        text = text.replace(f" {unit}", f"\N{NO-BREAK SPACE}{unit}")
    return text.replace("± ", "±\N{NO-BREAK SPACE}")


def _title(report_data: ReportData) -> str:
    recipes = dict.fromkeys(run.environment["recipe"] for run in report_data.runs)
    return ", ".join(recipes)


def _subtitle(report_data: ReportData) -> str:
    members_text = count_with_noun(len(report_data.members), "member")
    runs_text = count_with_noun(len(report_data.runs), "run")
    return (
        f"{members_text.capitalize()} of {runs_text}, {len(report_data.labels):,} {report_data.split} images,"
        f" {len(report_data.classes)} classes."
    )


def _kpi_tiles(report_data: ReportData) -> list[tuple[str, str, str]]:
    """Return the key figures at the top: label, value and details."""
    best_single = max(
        (architecture for architecture in report_data.series if not architecture.mixed),
        key=lambda one: one.single_member["accuracy"]["mean"],
    )
    tiles = [
        (
            "single network",
            format_percent(best_single.single_member["accuracy"]["mean"]),
            f"{best_single.name}, {_format_mflops(best_single.single_member['mflops'])}",
        )
    ]
    if best := best_committee(report_data.series):
        architecture, committee = best
        tiles.append(
            (
                "best committee",
                format_percent(committee["accuracy"]["mean"]),
                f"{committee['size']} x {architecture.name}, {_format_mflops(committee['mflops'])}",
            )
        )
    return tiles + [
        (committee.name, format_percent(committee.scores["accuracy"]), f"{_format_mflops(committee.mflops)} (mean)")
        for committee in report_data.selected
    ]


def _format_mflops(mflops: float) -> str:
    if math.isinf(mflops):
        return "unknown cost"
    return f"{mflops:,.0f} MFLOPs" if mflops >= 10 else f"{mflops:.2g} MFLOPs"


def _write_events(folder: Path, summaries: Sequence[Summary]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(str(folder), filename_suffix=_EVENT_FILE_SUFFIX)
    try:
        for summary in summaries:
            writer.add_event(Event(wall_time=time.time(), step=0, summary=summary))
    finally:
        writer.close()


def _committee_summary(run: RunData) -> Summary:
    committee = run.evaluation["committees"][-1]
    values = {name: committee[name]["mean"] for name in (*_METRICS, *SELECTIVE_METRICS)}
    values |= {} if committee["mflops"] is None else {"mflops": committee["mflops"]}
    return _scalars("committee", values)


def _selection_summary(selected: SelectedCommittee) -> Summary:
    values = {name: selected.scores[name] for name in _METRICS}
    if selected.confidence is not None and selected.correct is not None:
        values |= selective_metrics(selected.confidence, selected.correct)
    return _scalars(f"selected/{selected.name}", values)


def _scalars(group: str, values: Mapping[str, float]) -> Summary:
    return Summary(value=[Summary.Value(tag=f"{group}/{name}", simple_value=value) for name, value in values.items()])
