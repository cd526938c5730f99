"""Selection and export of the members of one or more runs."""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from keras_committee import tracking
from keras_committee.api.options import (
    MovedData,
    between,
    check_choice,
    check_conflicts,
    option,
    require,
    selection_path,
    set_options,
)
from keras_committee.api.results import Export, Push, SelectedCommittee
from keras_committee.api.run import Run, Runs, run_paths
from keras_committee.choices import OBJECTIVES, SEARCH_METHODS, SELECTION_HEADS
from keras_committee.errors import RecipeError
from keras_committee.export import formats, hub, publish
from keras_committee.files import expand_home, read_record
from keras_committee.folder_kinds import MODEL_CARD_FILE
from keras_committee.keras_config import loading_backend
from keras_committee.precision import EXPORT_PRECISIONS, export_precision
from keras_committee.progress import step
from keras_committee.run import Run as RunFolder
from keras_committee.run import lock_runs
from keras_committee.selection import Selection, View, views_to_try
from keras_committee.step_display import displayed
from keras_committee.tfserving.versions import MANIFEST_FILE

if TYPE_CHECKING:
    from keras_committee.stage_time import StageTimeModel

LATENCY = "latency"  # an objective: the measured time at an accuracy


@displayed
def select(
    runs: Runs,
    *,
    cascade: bool = False,
    max_mflops: float | None = None,
    max_latency: float | None = None,
    min_accuracy: float | None = None,
    objective: str = "accuracy",
    max_accuracy_drop: float | None = None,
    max_risk: float | None = None,
    batch_size: int | None = None,
    precision: str | None = None,
    search_method: str = "auto",
    head: str = "geometric_mean",
    views: str | Iterable[str] = (),
    temperatures: bool = False,
    out: str | Path | None = None,
    allow_incomplete: int | None = None,
    allow_duplicate_weights: bool = False,
    moved_data: MovedData = (),
) -> SelectedCommittee:
    """Select the best committee or cascade of the members of one or more runs, and write `selection.json`.

    Selection uses the validation split; accuracy is reported on the test split with 95 % intervals.

    Args:
        runs: One run, or several; a `Run` or the path of its folder.
        cascade: Select a cascade, which runs later members only if earlier ones lack confidence.
        max_mflops: Maximum cost per image, in MFLOPs; for a cascade, on average.
        max_latency: Maximum measured time per image, in milliseconds; for a cascade, on average.
        min_accuracy: Minimum accuracy, from 0 to 1. Without a budget, selects the cheapest that reaches it.
        objective: `"accuracy"` or another metric to optimize; `"latency"` is the measured time at an accuracy.
        max_accuracy_drop: Largest accuracy loss allowed for the cascade, in percentage points.
        max_risk: For a cascade, count only the answers that can be accepted at this error rate, and pass on only images
            near that decision.
        batch_size: Images per request in measurements of time; None is 32 for a cascade, else 1.
        precision: Precision of the export whose time is measured for a cascade: `"float32"` (the default),
            `"bfloat16"`, or `"auto"`: bfloat16 if this machine multiplies matrices in it.
        search_method: One of `choices.SEARCH_METHODS`.
        head: Layer that combines the members' predictions, one of `choices.SELECTION_HEADS`.
        views: Let each member also compete on views of the image: `"mirror"`, `"shifts"` or `"shifts=PIXELS"`, or both.
        temperatures: Divide the logits of each member by its temperature, fitted on the validation split as by
            `Run.calibrate`.
        out: Write the selection to this file; None is `selection.json` in the first run.
        allow_incomplete: As in `Run.evaluate`.
        allow_duplicate_weights: As in `Run.evaluate`.
        moved_data: As in `Run.evaluate`.

    Raises:
        RecipeError: If the arguments contradict each other, or no committee reaches the goal.
        IncompleteError, DataError, RunError, VerificationError: As in `Run.evaluate`.
    """
    _check_selection_options(
        max_mflops, max_latency, min_accuracy, objective, cascade, max_accuracy_drop, batch_size, precision
    )
    _check_risk(max_risk, cascade, min_accuracy, objective)
    check_choice("search_method", search_method, SEARCH_METHODS)
    check_choice("head", head, SELECTION_HEADS)
    by_time, tried = bool(max_latency) or objective == LATENCY, parse_views(views)
    batch_size = batch_size or (32 if cascade else 1)
    with lock_runs(run_paths(runs), set_options(moved_data)) as opened:
        file = expand_home(out) if out else opened[0].path / "selection.json"
        for run in opened:
            run.require_members(allow_incomplete)
        with loading_backend():
            from keras_committee import evaluation

        compute_precision = export_precision(precision or "float32") if by_time and cascade else "float32"
        pool = evaluation.load_pool(
            opened, min_members=allow_incomplete, allow_duplicate_weights=allow_duplicate_weights, views=tried
        )
        goal = evaluation.Objective(
            metric="accuracy" if objective == LATENCY else objective,
            max_cost=max_mflops or max_latency or math.inf,
            min_accuracy=min_accuracy or 0.0,
        )
        if temperatures:
            pool = pool.with_temperatures()
        time_model = _measure_stages(pool, batch_size, compute_precision) if cascade and by_time else None
        with step(f"selecting a {'cascade' if cascade else 'committee'}"):
            if cascade:
                selection = evaluation.select_cascade(
                    *(pool, goal, file),
                    search_method=search_method,
                    head=head,
                    max_accuracy_drop=max_accuracy_drop or 0.0,
                    time_model=time_model,
                    max_risk=max_risk,
                )
            else:
                latencies = evaluation.member_latencies(pool, batch_size) if by_time else None
                selection = evaluation.select(
                    pool, goal, file, search_method=search_method, head=head, latencies=latencies
                )
        if time_model is not None:
            selection.report["cascade"]["latency"] |= _measure_cascade(pool, selection, compute_precision)
        selection.write(file)
        opened[0].append_event("selected", kind=selection.kind, members=len(selection.members), file=str(file))
    tracking.send([opened[0].path])
    document = {"file": str(file), "kind": selection.kind, **dataclasses.asdict(selection)}
    return SelectedCommittee(document, file)


@displayed
def export(
    runs: Runs,
    *,
    out: str | Path | None = None,
    selection: str | Path | SelectedCommittee | None = None,
    member: int | Literal["best"] | None = None,
    format: str = formats.SAVED_MODEL,  # noqa: A002 - as in `keras.Model.export`
    input_dtype: str = "float32",
    precision: str = "float32",
    max_accuracy_drop: float = 0.2,
    allow_incomplete: int | None = None,
    moved_data: MovedData = (),
) -> Export:
    """Export a committee or cascade, by default as a SavedModel for TF Serving.

    Before the new version appears in the model folder, its predictions are verified against the Keras members in a
    separate process.

    Args:
        runs: One run, or several whose members form one committee; a `Run` or the path of its folder.
        out: Model folder; None is `saved_models/RUN`, or such as `onnx_models/RUN`; of one member
            `saved_models/RUN_member_0`.
        selection: A result of `select`, or its file; None combines all members.
        member: Index of the only member to export, whether or not the others are trained; `"best"` is the one of the
            highest validation accuracy.
        format: `"saved-model"`, or `"onnx"`, `"litert"` or `"openvino"` for another runtime, from raw pixels to
            predictions in float32.
        input_dtype: `"float32"` or `"uint8"`, of the pixels that a model for another runtime takes. A SavedModel has a
            signature for each.
        precision: Precision of convolutions and matrix products: `"float32"`, `"bfloat16"`, or `"auto"`: bfloat16 if
            this machine multiplies matrices in it and the accuracy permits it.
        max_accuracy_drop: In bfloat16, publish only if the upper end of the 95 % interval of the accuracy lost against
            float32, on the validation images, is below this number of percentage points.
        allow_incomplete: As in `Run.evaluate`.
        moved_data: As in `Run.evaluate`.

    Raises:
        ExportError: If a member cannot be exported, the exported model differs from Keras, or it loses more accuracy.
            Nothing is published.
        ResourceError: If the disk is full or not writable. Nothing is published.
        RunError, RecipeError, IncompleteError: If the runs do not form a committee.
    """
    check_choice("format", format, formats.FORMATS)
    check_choice("input_dtype", input_dtype, formats.INPUT_DTYPES)
    check_choice("precision", precision, EXPORT_PRECISIONS)
    require("max_accuracy_drop", between(max_accuracy_drop, 0, 100.0001), "above 0 and at most 100", max_accuracy_drop)
    paths, overrides, file = run_paths(runs), set_options(moved_data), selection_path(selection)
    _check_member(member, file, paths, allow_incomplete)
    opened = [RunFolder.open(path) for path in paths]
    index = _best_member(opened[0]) if member == "best" else member
    if index is not None:
        opened[0].require_member(index)
    model_dir = expand_home(out) if out else publish.default_model_dir(opened[0].path, format, index)
    publish.check_target(model_dir, format, precision, input_dtype)
    if file:
        Selection.read(file)
    elif index is None:
        for run in opened:
            run.require_members(allow_incomplete)
    with lock_runs(paths, overrides, shared=not overrides, reads_data=precision == "bfloat16"):
        pass
    with loading_backend():
        from keras_committee.export.export import export as export_committee

    version = export_committee(
        opened,
        out,
        file,
        member=index,
        format=format,
        input_dtype=input_dtype,
        min_members=allow_incomplete,
        precision=precision,
        max_accuracy_drop=max_accuracy_drop,
    )
    tracking.send(run.path for run in opened)
    return Export({"version": str(version), **read_record(version / MANIFEST_FILE)}, version)


def _check_member(member: int | str | None, selection: Path | None, runs: list[str], min_members: int | None) -> None:
    is_index = isinstance(member, int) and not isinstance(member, bool)
    require("member", member in (None, "best") or is_index, "the index of a member, or best", member)
    check_conflicts(
        {
            "--member cannot be combined with --selection": member is not None and selection,
            "--member takes one run": member is not None and len(runs) > 1,
            "--member cannot be combined with --allow-incomplete": member is not None and min_members,
        }
    )


def _best_member(run: RunFolder) -> int:
    """Return the finished member of the highest validation accuracy, of equal ones that of the lowest loss."""
    rows = {row["index"]: row for row in Run(run.path).training}
    finished = run.finished_members()
    if not finished or (unknown := [index for index in finished if index not in rows]):
        listing = f"members {', '.join(map(str, unknown))} have no training history" if finished else "none is trained"
        raise RecipeError(f"the best member of {run.path} is unknown: {listing}.\n  Name one by its index: --member N")
    return max(finished, key=lambda index: (rows[index]["validation_accuracy"], -rows[index]["validation_nll"]))


@displayed
def push(source: Run | str | Path, folder: str | Path) -> Push:
    """Write an export to a folder in the layout of the Hugging Face hub.

    The folder has the model; `README.md`, the model card; and `.gitattributes`. It is uploaded with `hf upload`.

    Args:
        source: A run, whose newest export is taken; or a model folder, whose newest version is taken, or one version.
            The model card is that of `report(run, model_card=True)`, if the run has it; else one from the export.
        folder: A new or empty folder, or one that an earlier call wrote, which is replaced. A model card that was
            edited is kept.

    Raises:
        RunError: If the source is no run and no export.
        ExportError: If the run has no export, or the export is damaged.
        RecipeError: If the folder holds something else.
        ResourceError: If the folder cannot be written.
    """
    version, card = hub.find_version(source.path if isinstance(source, Run) else expand_home(source))
    target = expand_home(folder)
    kept = hub.push(version, target, card)
    document = {
        "folder": str(target),
        "version": str(version),
        "card": str(target / MODEL_CARD_FILE),
        "card_kept": kept,
    }
    return Push(document, target)


def parse_views(views: str | Iterable[str]) -> tuple[View, ...]:
    """Return the views of `"mirror,shifts=2"`. Raises RecipeError."""
    parts = views.split(",") if isinstance(views, str) else list(views)
    if not parts:
        return ()
    names = {name: pixels for name, _, pixels in (part.strip().partition("=") for part in parts)}
    pixels = names.pop("shifts", None)
    if names not in ({}, {"mirror": ""}) or not (pixels or "1").isdecimal() or int(pixels or 1) < 1:
        wanted = "mirror, shifts or shifts=PIXELS, or both with a comma"
        raise RecipeError(f"--views must be {wanted}. Received: {views!r}.")
    return views_to_try(mirror=bool(names), shifts=0 if pixels is None else int(pixels or 1))


def _check_selection_options(
    max_mflops: float | None,
    max_latency: float | None,
    min_accuracy: float | None,
    objective: str,
    cascade: bool,
    max_accuracy_drop: float | None,
    batch_size: int | None,
    precision: str | None,
) -> None:
    check_choice("objective", objective, (*OBJECTIVES, LATENCY))
    check_choice("precision", precision, (None, *EXPORT_PRECISIONS))
    for name, value in {"max_mflops": max_mflops, "max_latency": max_latency, "batch_size": batch_size}.items():
        require(name, value is None or between(value, 0), "a number above 0", value)
    require("min_accuracy", min_accuracy is None or 0 <= min_accuracy <= 1, "a number from 0 to 1", min_accuracy)
    drop, by_time = max_accuracy_drop is not None, bool(max_latency) or objective == LATENCY
    require(
        "max_accuracy_drop",
        max_accuracy_drop is None or max_accuracy_drop >= 0,
        "a number of 0 or more",
        max_accuracy_drop,
    )
    check_conflicts(
        {
            "--max-mflops and --max-latency cannot be combined": max_mflops and max_latency,
            "--max-latency cannot be combined with --objective latency; give --min-accuracy instead": (
                max_latency and objective == LATENCY
            ),
            "--max-mflops cannot be combined with --objective latency": max_mflops and objective == LATENCY,
            "--objective latency requires --cascade or --min-accuracy": (
                objective == LATENCY and not cascade and not min_accuracy
            ),
            "--max-latency and --min-accuracy cannot be combined with --cascade; give one": (
                cascade and max_latency and min_accuracy
            ),
            "--max-accuracy-drop requires --cascade": drop and not cascade,
            "--max-accuracy-drop cannot be combined with --objective": drop and objective not in ("accuracy", LATENCY),
            "--max-accuracy-drop cannot be combined with --max-mflops, --max-latency or --min-accuracy": (
                drop and (max_mflops or max_latency or min_accuracy)
            ),
            "--max-mflops and --min-accuracy cannot be combined with --cascade; give one": (
                cascade and max_mflops and min_accuracy
            ),
            "--min-accuracy with --cascade cannot be combined with --objective": (
                cascade and min_accuracy and objective not in ("accuracy", LATENCY)
            ),
            f"{option('batch_size')} requires --max-latency or --objective latency": batch_size and not by_time,
            f"{option('precision')} requires --cascade and --max-latency or --objective latency": (
                precision and not (by_time and cascade)
            ),
        }
    )


def _check_risk(max_risk: float | None, cascade: bool, min_accuracy: float | None, objective: str) -> None:
    require("max_risk", max_risk is None or 0 < max_risk < 1, "a number between 0 and 1", max_risk)
    other_goal = not cascade or min_accuracy or objective not in ("accuracy", LATENCY)
    message = "--max-risk requires --cascade, without --min-accuracy and --objective nll or brier"
    check_conflicts({message: max_risk is not None and other_goal})


def _load_models(members):
    """Return the models of pool members, each file loaded once."""
    from keras_committee.export.export_members import load_models
    from keras_committee.member_dir import MemberDir

    files = [MemberDir(member.run, member.index).model for member in members]
    return load_models(files, [member.view for member in members])


def _measure_stages(pool, batch_size: int, precision: str) -> "StageTimeModel":
    """Measure the time of exported graphs of the pool's members on this machine."""
    from keras_committee.export import graph_time
    from keras_committee.stage_time import StageTimeModel

    members = pool.with_known_costs().members
    models = _load_models(members)
    graphs = graph_time.measure_stages(models, [member.architecture for member in members], batch_size, precision)
    return StageTimeModel(graphs, batch_size)


def _measure_cascade(pool, selection: Selection, precision: str) -> dict[str, Any]:
    """Measure the selected cascade and its committee; return the times in milliseconds per image, and the machine."""
    from keras_committee.export import graph_time

    report = selection.report["cascade"]
    models = _load_models([pool.members[position] for position in pool.positions(selection.members)])
    committee = _load_models([pool.members[pool.position_of(entry)] for entry in report["committee"]["members"]])
    shares = report["latency"]["shares"]
    continuing = [later / max(share, 1e-9) for share, later in itertools.pairwise(shares)]
    sizes = [stage.members for stage in selection.stages or ()]
    measured, committee_measured = graph_time.measure_cascade(
        *(models, sizes, continuing, committee, report["latency"]["batch_size"], precision)
    )
    return {
        "measured_ms": measured,
        "committee_measured_ms": committee_measured,
        "precision": precision,
        "machine": graph_time.describe_machine(),
    }
