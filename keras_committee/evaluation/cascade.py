"""Cascade simulation on member predictions: outputs, cost and scores of each exit.

After stage s the committee of the first n_s members answers where its confidence is high enough; only the other
examples go on to the next members. `models.Cascade` is the same rule as one Keras model.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_committee import aggregation, metrics
from keras_committee.evaluation.calibration import calibrated_probabilities
from keras_committee.layers.confidence import check_confidence
from keras_committee.metrics.scores import MIN_PROBABILITY
from keras_committee.selection import Stage, check_stages
from keras_committee.stage_time import StageTimeModel

NO_EXIT = 2.0  # a threshold that no confidence reaches

_CACHE_SIZE = 1280  # arrays; 50 MB for 10,000 examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """Members, stages and thresholds of a cascade.

    Attributes:
        order: Indices of the members among the predictions, in the order in which they run.
        sizes: Number of members at the end of each stage, ascending; the last is the length of `order`.
        thresholds: One float for each stage but the last. A stage answers where the confidence is at least this.
        confidence: One of `layers.CONFIDENCE_MEASURES`.
        lower_thresholds: One float for each stage but the last, at most its threshold. A stage also answers where the
            confidence is below this; None for no stage.

    Raises:
        ValueError: If the sizes do not ascend to the length of the order, the number of thresholds is wrong, or a lower
            threshold is above the threshold.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    thresholds: tuple[float, ...]
    confidence: str = "max_probability"
    lower_thresholds: tuple[float, ...] | None = None

    def __post_init__(self):
        check_confidence(self.confidence)
        check_stages(self.sizes, self.thresholds, len(self.order), self.lower_thresholds)

    def without_unused_stages(self) -> "CascadeConfig":
        """Return the same cascade without stages that no example reaches and stages that answer no example."""
        end = max_members_used(self.sizes, self.thresholds, self.lower_thresholds)
        rows = zip(self.sizes, self.thresholds, self.lower_thresholds or self.thresholds, strict=False)
        has_windows = self.lower_thresholds is not None
        kept = [row for row in rows if row[0] < end and (row[1] < NO_EXIT or (has_windows and row[2] > 0))]
        return dataclasses.replace(
            self,
            order=self.order[:end],
            sizes=(*(size for size, *_ in kept), end),
            thresholds=tuple(threshold for _, threshold, _ in kept),
            lower_thresholds=tuple(lower for *_, lower in kept) if has_windows else None,
        )

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of a `Selection`."""
        lower_thresholds = [low or None for low in self.lower_thresholds or [0.0] * len(self.thresholds)]
        rows = zip(self.sizes, (*self.thresholds, None), (*lower_thresholds, None), strict=True)
        return tuple(Stage(members=size, threshold=high, lower_threshold=low) for size, high, low in rows)


class MemberPredictions:
    """Predictions of members on one split, with the cost of each member.

    The outputs of a committee are computed on first use and cached.

    Args:
        log_probabilities: Floats `(examples, members, classes)`, natural logarithms, temperatures applied.
        labels: Integers `(examples,)`.
        mflops: For each member 2 x multiply-adds / 1e6 for one image.
        head: Head as in `aggregation.combine`.
        architectures: For each member its architecture. Required with `time_model`.
        time_model: The cost of a cascade is its time in milliseconds per image by this model, instead of its MFLOPs.
        answer_probabilities: Floats `(examples, classes)`, how probable it is that each class is right, for `scores`.

    Raises:
        ValueError: If the shapes do not match.
    """

    def __init__(
        self,
        log_probabilities: np.ndarray,
        labels: np.ndarray,
        mflops: Sequence[float],
        head: Any = "geometric_mean",
        *,
        architectures: Sequence[str] = (),
        time_model: StageTimeModel | None = None,
        answer_probabilities: np.ndarray | None = None,
    ):
        if np.ndim(log_probabilities) != 3 or 0 in np.shape(log_probabilities):
            raise ValueError(
                "log_probabilities must be (examples, members, classes), none of them 0. "
                f"Received: shape {np.shape(log_probabilities)}"
            )
        examples, members, _ = np.shape(log_probabilities)
        if np.shape(labels) != (examples,) or len(mflops) != members:
            raise ValueError(
                f"labels and mflops must hold one value for each of {examples} examples and {members} members. "
                f"Received: labels of shape {np.shape(labels)}, {len(mflops)} costs"
            )
        self.log_probabilities = log_probabilities
        self.labels = np.asarray(labels)
        self.mflops = tuple(float(cost) for cost in mflops)
        self.head = head
        self.architectures, self.time_model = tuple(architectures), time_model
        self.answer_probabilities = answer_probabilities
        self._cached_arrays: collections.OrderedDict[tuple, np.ndarray] = collections.OrderedDict()
        self._last_probabilities: tuple[list[int], np.ndarray] | None = None

    def subset(self, examples: np.ndarray) -> "MemberPredictions":
        """Return the predictions of the same members on some examples, given by indices or a mask."""
        smoothing = None if self.answer_probabilities is None else self.answer_probabilities[examples]
        return self._same_members(self.log_probabilities[examples], self.labels[examples], smoothing)

    def with_smoothed_accuracy(self, committee: Sequence[int]) -> "MemberPredictions":
        """Return the same predictions, with scores of accuracy that are smoothed by a committee of these members.

        Half of the score of an answer is whether it is right, half how probable it is by the committee. Among thousands
        of thresholds, many are right on these examples by chance where the committee is wrong, and not on others; an
        answer that differs from the committee's then costs what it costs on average.

        The committee is calibrated: its temperature is fitted to the labels, and a constant makes its own mean score
        its accuracy.
        """
        probabilities = self.probabilities(committee)
        calibrated = calibrated_probabilities(probabilities, self.labels)
        accuracy = (probabilities.argmax(axis=1) == self.labels).mean()
        smoothing = calibrated + (accuracy - calibrated.max(axis=1).mean())
        return self._same_members(self.log_probabilities, self.labels, smoothing)

    def _same_members(
        self, log_probabilities: np.ndarray, labels: np.ndarray, answer_probabilities: np.ndarray | None
    ) -> "MemberPredictions":
        return MemberPredictions(
            *(log_probabilities, labels, self.mflops, self.head),
            architectures=self.architectures,
            time_model=self.time_model,
            answer_probabilities=answer_probabilities,
        )

    def cost(self, members: Sequence[int]) -> float:
        """Return the MFLOPs of running `members` on one image."""
        return math.fsum(self.mflops[member] for member in members)

    def stage_costs(
        self, order: Sequence[int], sizes: Sequence[int]
    ) -> tuple[tuple[float, ...], tuple[float, ...] | None, int]:
        """Return `costs`, `fixed_costs` and `batch_size` of these stages, see `cascade_search.StageOutcomes`."""
        if self.time_model is None:
            return tuple(self.cost(order[:size]) for size in sizes), None, 1
        times = [
            self.time_model.stage([self.architectures[member] for member in order[start:end]], is_first=start == 0)
            for start, end in zip((0, *sizes), sizes, strict=False)
        ]
        costs = tuple(itertools.accumulate(time.per_row for time in times))
        return costs, tuple(time.fixed for time in times), self.time_model.batch_size

    def probabilities(self, members: Sequence[int]) -> np.ndarray:
        """Return the probabilities of the committee of `members`: float32 `(examples, classes)`."""
        # Sorted, so that a committee has the same outputs to the last bit in whatever order its members run.
        members = sorted(members)
        if self._last_probabilities is None or self._last_probabilities[0] != members:
            head, weights = aggregation.resolve_head(self.head)
            weights = None if weights is None else np.asarray(weights)[members]
            output = aggregation.combine(head, self.log_probabilities[:, members], weights)
            self._last_probabilities = members, output
        return self._last_probabilities[1]

    def confidences(self, members: Sequence[int], measure: str) -> np.ndarray:
        """Return the confidence of the committee of `members`: float32 `(examples,)`."""
        return self._cache(
            ("confidence", measure, *sorted(members)),
            lambda: aggregation.confidence(
                measure, self.probabilities(members), self.log_probabilities[:, sorted(members)]
            ),
        )

    def scores(self, members: Sequence[int], objective: str) -> np.ndarray:
        """Return a score per example for the committee of `members`: floats `(examples,)`, higher is better.

        1 or 0 for `"accuracy"`, the log-likelihood for `"nll"`, the negative Brier score for `"brier"`. With
        `answer_probabilities`, that for `"accuracy"` is the mean of 1 or 0 and the probability of the answer.
        """

        def compute() -> np.ndarray:
            probabilities = self.probabilities(members)
            scores = _per_example_scores(probabilities, self.labels, objective)
            if objective != "accuracy" or self.answer_probabilities is None:
                return scores
            answers = probabilities.argmax(axis=1)
            return (scores + self.answer_probabilities[np.arange(len(answers)), answers]) / 2

        return self._cache(("score", objective, *sorted(members)), compute)

    def _cache(self, key: tuple, compute: Callable[[], np.ndarray]) -> np.ndarray:
        if key in self._cached_arrays:
            self._cached_arrays.move_to_end(key)
            return self._cached_arrays[key]
        self._cached_arrays[key] = value = compute()
        if len(self._cached_arrays) > _CACHE_SIZE:
            self._cached_arrays.popitem(last=False)
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExitStats:
    """Share and scores of the examples that one stage answered.

    Attributes:
        members: Number of members that have run at this exit.
        rate: Fraction of all examples answered here.
        accuracy, nll, ece: Scores of the examples answered here; None where there are none.
    """

    members: int
    rate: float
    accuracy: float | None
    nll: float | None
    ece: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """Outputs, cost and scores of a cascade on one split.

    Attributes:
        probabilities: float32 `(examples, classes)`.
        members_used: int32 `(examples,)`.
        mflops: Mean MFLOPs over the examples.
        worst_mflops: MFLOPs of an image for which every reachable stage runs.
        exits: One per stage.
        scores: Accuracy, NLL, ECE and Brier score over all examples.
        confidence: float32 `(examples,)`, of the committee at the exit.
        correct: bool `(examples,)`.
    """

    probabilities: np.ndarray
    members_used: np.ndarray
    mflops: float
    worst_mflops: float
    exits: tuple[ExitStats, ...]
    scores: dict[str, float]
    confidence: np.ndarray
    correct: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Return the scalar results, for JSON."""
        exits = [dataclasses.asdict(stage_exit) for stage_exit in self.exits]
        costs = {"mflops": self.mflops, "worst_mflops": self.worst_mflops}
        return {**self.scores, **self.selective_metrics(), **costs, "exits": exits}

    def selective_metrics(self) -> dict[str, float]:
        """Return `metrics.selective_metrics` by the confidence at the exit."""
        return metrics.selective_metrics(self.confidence, self.correct)


def simulate_cascade(predictions: MemberPredictions, config: CascadeConfig) -> SimulationResult:
    """Return the outputs of a cascade on these predictions, with their cost and scores.

    Source: Wang et al. 2021, arXiv:2012.01988, section 4.
    """

    def outputs_of(size: int, examples: np.ndarray) -> dict[str, np.ndarray]:
        members = config.order[:size]
        return {
            "probabilities": predictions.probabilities(members)[examples],
            "confidence": predictions.confidences(members, config.confidence)[examples],
            "members_used": np.full(len(examples), size, np.int32),
        }

    labels = predictions.labels
    outputs = aggregation.first_confident(
        len(labels), config.sizes, config.thresholds, outputs_of, config.lower_thresholds
    )
    probabilities, members_used = outputs["probabilities"], outputs["members_used"]
    costs = {size: predictions.cost(config.order[:size]) for size in config.sizes}
    return SimulationResult(
        probabilities=probabilities,
        members_used=members_used,
        mflops=float(np.mean([costs[used] for used in members_used.tolist()])),
        worst_mflops=costs[max_members_used(config.sizes, config.thresholds, config.lower_thresholds)],
        exits=tuple(_exit_stats(size, members_used == size, probabilities, labels) for size in config.sizes),
        scores=metrics.classification_metrics(probabilities, labels),
        confidence=outputs["confidence"],
        correct=probabilities.argmax(axis=1) == labels,
    )


def max_members_used(
    sizes: Sequence[int], thresholds: Sequence[float], lower_thresholds: Sequence[float] | None = None
) -> int:
    """Return the most members that an image may need.

    A stage with a threshold of 0 or less answers every image, and so does one whose lower threshold is as high.
    """
    rows = zip(sizes, thresholds, lower_thresholds or [0.0] * len(thresholds), strict=False)
    return next((size for size, threshold, lower in rows if threshold <= lower), sizes[-1])


def _exit_stats(size: int, mask: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> ExitStats:
    if not mask.any():
        return ExitStats(members=size, rate=0.0, accuracy=None, nll=None, ece=None)
    scores = metrics.classification_metrics(probabilities[mask], labels[mask])
    del scores["brier"]
    return ExitStats(members=size, rate=float(mask.mean()), **scores)


def _per_example_scores(probabilities: np.ndarray, labels: np.ndarray, objective: str) -> np.ndarray:
    true_probabilities = probabilities[np.arange(len(labels)), labels]
    if objective == "accuracy":
        return (probabilities.argmax(axis=1) == labels).astype(np.float32)
    if objective == "nll":
        return np.log(np.maximum(true_probabilities, MIN_PROBABILITY))
    if objective == "brier":
        return 2 * true_probabilities - np.square(probabilities).sum(axis=1) - 1
    raise ValueError(f"objective must be accuracy, nll or brier. Received: {objective!r}")
