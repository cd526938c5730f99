"""Promises of a committee or cascade: prediction sets with a coverage, and acceptance with a risk.

A promise is fitted to one part of the validation split; the members, weights and thresholds were chosen with the other
part. See `split_sizes.divide_for_promise`.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee import aggregation, metrics
from keras_committee.errors import DataError, RecipeError, RunError
from keras_committee.evaluation.pool import Pool, load_whole_pool
from keras_committee.evaluation.select import to_selection_members, with_reference
from keras_committee.layers import GeometricMean, subset_head
from keras_committee.metrics.selective import CERTAINTY, SelectiveThreshold, min_selective_examples
from keras_committee.run import Run
from keras_committee.selection import AcceptanceRule, Promise, Selection, SetRule

_PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)  # that RAPS tries, as its authors


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromiseGoal:
    """What is to be promised.

    Attributes:
        coverage: Probability that the prediction set of a new image holds its true class; None for no sets.
        method: One of `choices.SET_METHODS`.
        per_class: Whether the coverage holds for the images of each class, instead of over all of them.
        max_risk: Highest error rate among accepted answers; None for no acceptance.
    """

    coverage: float | None = None
    method: str = "lac"
    per_class: bool = False
    max_risk: float | None = None


def make_promise(
    runs: Sequence[Run], goal: PromiseGoal, file: Path, selection: Selection | None, *, min_members: int | None = None
) -> tuple[Selection, dict[str, Any]]:
    """Fit the rules of a promise for a selection, measure them on the test split, and write the selection to `file`.

    The validation split of the runs is divided, if it is not yet; see `Run.divide`. The caller holds the locks of the
    folders.

    Args:
        runs: The runs of the members.
        goal: What to promise.
        file: The file of the selection.
        selection: The selection; None for all members of `runs`, with the head of the recipe of the first one.
        min_members: As in `load_pool`.

    Returns:
        The selection with its promise, and the block `promise` of `calibration.json`: the fields of
        `selection.Promise`, and

        - `coverage_interval`: the 95 % interval of the coverage for new images that follows from the number of images.
        - `acceptance_fit`: `coverage`, `risk` and `risk_bound` of accepted answers on the images of the promise.
        - `test`: `examples`; with sets `coverage`, `coverage_interval` (of Wilson), `mean_set_size`, `set_sizes` (the
          number of images by size) and `class_coverage`; with acceptance `accepted`, the fraction, `risk` and
          `risk_interval`, both None if none is accepted.
        - `notes`: what may weaken the promise.

    Raises:
        DataError: If there are too few validation images. Nothing is recorded.
        RunError: If the selection was chosen with all validation images, or its members are not those of the runs.
        RecipeError: If no threshold meets the risk, or the head of the recipe is no head of `layers`.
    """
    views = dict.fromkeys(member.view for member in selection.members if member.view) if selection is not None else {}
    whole = load_whole_pool(runs, min_members=min_members, allow_duplicate_weights=True, views=tuple(views))
    choose, promise = whole.divided()
    _check_sizes(promise, goal)
    for run in runs:
        run.divide(len(whole.labels["validation"]))
    if selection is None:
        selection = _all_members(runs[0], choose, file)
    elif selection.report.get("division") != choose.division:
        raise RunError(_chosen_with_all_message(runs, file, choose))
    _check_members(selection, whole, file)
    fitted = _fit_acceptance(selection, promise, goal)
    promised = Promise(
        split="validation",
        examples=len(promise.labels["validation"]),
        chosen_on=len(choose.labels["validation"]),
        sets=fit_sets(selection, choose, promise, goal),
        acceptance=fitted
        and AcceptanceRule(max_risk=float(goal.max_risk or 0), certainty=CERTAINTY, threshold=fitted.threshold),
    )
    selection = dataclasses.replace(selection, promise=promised)
    result = {
        **dataclasses.asdict(promised),
        "coverage_interval": None if goal.coverage is None else _coverage_interval(promise, goal),
        "acceptance_fit": fitted and {name: getattr(fitted, name) for name in ("coverage", "risk", "risk_bound")},
        "test": _measure(selection, whole),
        "notes": _notes(runs),
    }
    selection = dataclasses.replace(selection, report={**selection.report, "promise": result})
    selection = with_reference(selection, promise)
    selection.write(file)
    for run in runs:
        run.append_event("promised", file=str(file), coverage=goal.coverage, max_risk=goal.max_risk)
    return selection, result


def fit_sets(selection: Selection, choose: Pool, promise: Pool, goal: PromiseGoal) -> SetRule | None:
    """Return the rule of prediction sets of a coverage, or None where none is requested.

    The penalty and the free ranks of RAPS are chosen with the images to choose with, as by its authors: the free ranks
    cover the true class with the requested probability, and the penalty makes the smallest sets.

    Args:
        selection: The selection.
        choose: Pool with the images to choose with.
        promise: Pool with the images to make the promise on.
        goal: The coverage and the method.
    """
    if goal.coverage is None:
        return None
    probabilities, labels = promise.outputs(selection, "validation")["probabilities"], promise.labels["validation"]
    regularization: dict[str, Any] = {}
    if goal.method == "raps":
        chosen = choose.outputs(selection, "validation")["probabilities"]
        regularization = _choose_regularization(chosen, choose.labels["validation"], goal.coverage)
    scores = _true_class_scores(goal.method, probabilities, labels, **regularization)
    groups = [labels == label for label in range(probabilities.shape[1])] if goal.per_class else [slice(None)]
    thresholds = tuple(metrics.conformal_threshold(scores[group], goal.coverage) for group in groups)
    return SetRule(coverage=goal.coverage, method=goal.method, thresholds=thresholds, **regularization)


def _choose_regularization(probabilities: np.ndarray, labels: np.ndarray, coverage: float) -> dict[str, Any]:
    """Return `penalty` and `free_ranks` of RAPS. Source: Angelopoulos et al. 2021, arXiv:2009.14193, appendix E."""
    true = probabilities[np.arange(len(labels)), labels]
    ranks = np.sort((probabilities > true[:, None]).sum(axis=1) + 1)
    free_ranks = int(ranks[min(math.ceil((len(ranks) + 1) * coverage), len(ranks)) - 1])

    def mean_size(penalty: float) -> float:
        scores = _true_class_scores("raps", probabilities, labels, penalty=penalty, free_ranks=free_ranks)
        threshold = float(np.quantile(scores, 1 - coverage, method="lower"))
        return aggregation.prediction_sets("raps", probabilities, [threshold], penalty, free_ranks).sum(axis=1).mean()

    return {"penalty": min(_PENALTIES, key=mean_size), "free_ranks": free_ranks}


def _true_class_scores(method: str, probabilities: np.ndarray, labels: np.ndarray, **regularization: Any) -> np.ndarray:
    return aggregation.conformity(method, probabilities, **regularization)[np.arange(len(labels)), labels]


def _fit_acceptance(selection: Selection, promise: Pool, goal: PromiseGoal) -> SelectiveThreshold | None:
    """Return the threshold of the risk; None where none is requested. Raises RecipeError."""
    if goal.max_risk is None:
        return None
    outputs, labels = promise.outputs(selection, "validation"), promise.labels["validation"]
    correct = outputs["probabilities"].argmax(axis=1) == labels
    fitted = metrics.selective_threshold(outputs["confidence"], correct, goal.max_risk)
    if fitted is not None:
        return fitted
    curve = metrics.risk_coverage_curve(outputs["confidence"], correct)
    rows = zip(curve.errors.tolist(), curve.accepted.tolist(), strict=True)
    lowest = min(metrics.risk_upper_bound(*row) for row in rows)
    raise RecipeError(
        f"no confidence threshold accepts answers with an error rate of at most {goal.max_risk:g} on the "
        f"{len(labels):,} images of the promise: the lowest upper bound of any threshold is {lowest:.4f}. No promise "
        "was made.\n"
        "  Raise --max-risk, or use more validation images or better members, in a new run."
    )


def _all_members(run: Run, pool: Pool, file: Path) -> Selection:
    """Return the committee of all members of a pool, which nothing chose. Raises RecipeError."""
    head = subset_head(run.recipe().head or GeometricMean(), [member.index for member in pool.members])
    name, weights = aggregation.resolve_head(head)
    if not isinstance(name, str):
        raise RecipeError(
            f"the head of {run.path} is no head of `layers`, so it is not exported and nothing can be promised of it.\n"
            f"  Select a committee first: keras-committee select {run.path}"
        )
    return Selection(
        members=to_selection_members(pool, range(len(pool.members)), file),
        head=name,
        weights=None if weights is None else tuple(weights),
        classes=pool.classes,
        report={"division": dict(pool.division or {})},
    )


def _check_members(selection: Selection, pool: Pool, file: Path) -> None:
    """Raise RunError if a member of the selection is not in the pool."""
    try:
        pool.positions(selection.members)
    except KeyError as error:
        member = error.args[0]
        raise RunError(
            f"{file} has member {member.index} of {member.run}, whose weights (sha256 {member.weights[:12]}) "
            f"belong to no member of the run.\n  Select again: keras-committee select {member.run}"
        ) from None


def _check_sizes(promise: Pool, goal: PromiseGoal) -> None:
    """Raise DataError if the images of the promise are too few for the goal."""
    labels = promise.labels["validation"]
    total = sum((promise.division or {}).values())
    if goal.coverage is not None:
        needed = metrics.min_conformal_examples(goal.coverage)
        counts = np.bincount(labels, minlength=len(promise.classes)) if goal.per_class else np.array([len(labels)])
        if counts.min() < needed:
            rarest = f" of class {promise.classes[int(counts.argmin())]}" if goal.per_class else ""
            images = math.ceil(needed * total / max(int(counts.min()), 1))
            images += images % 2
            raise DataError(_too_few_message(f"a coverage of {goal.coverage:g}", needed, rarest, counts.min(), images)
                            + _interval_text(needed, goal.coverage))  # fmt: skip
    if goal.max_risk is not None:
        needed = min_selective_examples(goal.max_risk)
        if len(labels) < needed:
            what = f"an error rate of at most {goal.max_risk:g}"
            raise DataError(_too_few_message(what, needed, "", len(labels), 2 * needed) + ", if no answer is wrong.")


def _too_few_message(what: str, needed: int, rarest: str, received: int, images: int) -> str:
    return (
        f"{what} requires at least {needed:,} images{rarest} to promise on; one half of the validation split has "
        f"{received:,}. Nothing was changed.\n"
        f"  Set `validation` of the recipe's data to at least {images:,}, in a new run"
    )


def _interval_text(examples: int, coverage: float) -> str:
    few, many = (metrics.coverage_interval(number, coverage) for number in (examples, 2500))
    return (
        f": with {examples:,} images to promise on, the coverage of new images lies between {few['low']:.3f} and "
        f"{few['high']:.3f} (95 % interval), with 2,500 between {many['low']:.3f} and {many['high']:.3f}.\n"
        "  Or request a lower --coverage."
    )


def _chosen_with_all_message(runs: Sequence[Run], file: Path, choose: Pool) -> str:
    division = choose.division or {}
    total = sum(division.values())
    return (
        f"{file} was chosen with all {total:,} validation images, so none is left to make a promise on. The split is "
        f"now divided: {division['choose']:,} images to choose with, {division['promise']:,} to promise on.\n"
        f"  Repeat the selection with its options, then this command: keras-committee select "
        f"{' '.join(str(run.path) for run in runs)}"
    )


def _coverage_interval(promise: Pool, goal: PromiseGoal) -> dict[str, float]:
    """Return the interval of the coverage; per class, that of the class with the fewest images."""
    labels = promise.labels["validation"]
    examples = int(np.bincount(labels).min()) if goal.per_class else len(labels)
    return metrics.coverage_interval(examples, float(goal.coverage or 0))


def _measure(selection: Selection, pool: Pool) -> dict[str, Any]:
    """Return the block `test`."""
    outputs, labels = pool.outputs(selection, "test"), pool.labels["test"]
    result: dict[str, Any] = {"examples": len(labels)}
    if "prediction_set" in outputs:
        covered = outputs["prediction_set"][np.arange(len(labels)), labels]
        sizes, counts = np.unique(outputs["set_size"], return_counts=True)
        result |= {
            "coverage": float(covered.mean()),
            "coverage_interval": metrics.accuracy_interval(float(covered.mean()), len(labels)),
            "mean_set_size": float(outputs["set_size"].mean()),
            "set_sizes": {str(size): count for size, count in zip(sizes.tolist(), counts.tolist(), strict=True)},
            "class_coverage": [
                float(covered[labels == label].mean()) if (labels == label).any() else None
                for label in range(len(pool.classes))
            ],
        }
    if "accepted" in outputs:
        accepted = outputs["accepted"]
        wrong = outputs["probabilities"].argmax(axis=1)[accepted] != labels[accepted]
        risk = float(wrong.mean()) if len(wrong) else None
        result |= {
            "accepted": float(accepted.mean()),
            "risk": risk,
            "risk_interval": None if risk is None else metrics.accuracy_interval(risk, len(wrong)),
        }
    return result


def _notes(runs: Sequence[Run]) -> list[str]:
    """Return what may weaken the promise, as far as the runs show it."""
    chosen = [str(run.path) for run in runs if run.recipe().restore_best]
    if not chosen:
        return []
    return [
        f"note: the recipe of {', '.join(chosen)} has `restore_best`, which chose the epoch of each member with all "
        "validation images.\n  The coverage and the risk may be slightly worse than promised."
    ]
