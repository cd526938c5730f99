"""What would a cascade answer, and what would it cost? Arithmetic on votes that were cast already.

After stage s the committee of the first n_s members answers where it is sure enough; only the other examples ask the
next members. `models.Cascade` is the same as one model.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_committee import metrics
from keras_committee.layers import GeometricMean, subset_head
from keras_committee.layers.confidence import check_confidence, confidence
from keras_committee.models.cascade import check_stages
from keras_committee.selection import Stage

NO_EXIT = 2.0  # a threshold that no confidence reaches

# Confidences of so many committees are kept: 50 MB for 10,000 examples and one measure.
_CACHE_SIZE = 1280


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """Who is asked, in which order, and until when.

    Attributes:
        order: Places of the members among the votes, first asked first.
        sizes: So many members have been asked when a stage ends; rising, the last all of the order.
        thresholds: A stage but the last answers where the confidence is at least this, one float for each.
        confidence: One of `layers.CONFIDENCE_MEASURES`.

    Raises:
        ValueError: If the sizes do not rise to the length of the order, or the thresholds are not one fewer.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    thresholds: tuple[float, ...]
    confidence: str = "max_probability"

    def __post_init__(self):
        check_confidence(self.confidence)
        check_stages(self.sizes, self.thresholds, len(self.order))

    def without_unused_stages(self) -> "CascadeConfig":
        """The same answers without stages that nobody reaches, and without those that answer nobody."""
        end = max_members_used(self.sizes, self.thresholds)
        pairs = zip(self.sizes, self.thresholds, strict=False)
        kept = [(size, threshold) for size, threshold in pairs if size < end and threshold < NO_EXIT]
        return dataclasses.replace(
            self,
            order=self.order[:end],
            sizes=(*(size for size, _ in kept), end),
            thresholds=tuple(threshold for _, threshold in kept),
        )

    def stages(self) -> tuple[Stage, ...]:
        """As `selection.json` keeps them."""
        pairs = zip(self.sizes, (*self.thresholds, None), strict=True)
        return tuple(Stage(members=size, threshold=threshold) for size, threshold in pairs)


class MemberPredictions:
    """The votes of members on one split, and what each member costs.

    What any committee of them says is worked out when it is first asked for.

    Args:
        log_probabilities: Floats `(examples, members, classes)`, natural logarithms, temperatures applied.
        labels: Integers `(examples,)`.
        mflops: For each member 2 x multiply-adds / 1e6 for one image.
        head: Layer from logits `(batch, members, classes)` to probabilities; `GeometricMean()` where None.

    Raises:
        ValueError: If the shapes do not fit each other.
    """

    def __init__(self, log_probabilities: np.ndarray, labels: np.ndarray, mflops: Sequence[float], head=None):
        if np.ndim(log_probabilities) != 3 or 0 in np.shape(log_probabilities):
            raise ValueError(f"votes must be (examples, members, classes). Received: {np.shape(log_probabilities)}")
        examples, members, _ = np.shape(log_probabilities)
        if np.shape(labels) != (examples,) or len(mflops) != members:
            raise ValueError(
                f"{examples} examples and {members} members need as many labels and costs. "
                f"Received: labels of shape {np.shape(labels)}, {len(mflops)} costs"
            )
        self.log_probabilities = log_probabilities
        self.labels = np.asarray(labels)
        self.mflops = tuple(float(cost) for cost in mflops)
        self.head = GeometricMean() if head is None else head
        self._cached_arrays: collections.OrderedDict[tuple, np.ndarray] = collections.OrderedDict()
        self._last_prediction: tuple = (None, None)

    def subset(self, examples: np.ndarray) -> "MemberPredictions":
        """The same members on some of the examples: indices or a mask."""
        return MemberPredictions(self.log_probabilities[examples], self.labels[examples], self.mflops, self.head)

    def cost(self, members: Sequence[int]) -> float:
        """MFLOPs of asking `members` about one image."""
        return math.fsum(self.mflops[member] for member in members)

    def probabilities(self, members: Sequence[int]) -> np.ndarray:
        """What the committee of `members` says: float32 `(examples, classes)`."""
        return self._cached_prediction(members)[0]

    def confidences(self, members: Sequence[int], measure: str) -> np.ndarray:
        """How sure the committee of `members` is: float32 `(examples,)`."""
        return self._cache(
            ("confidence", measure, *sorted(members)), lambda: self._compute_confidences(members, measure)
        )

    def scores(self, members: Sequence[int], objective: str) -> np.ndarray:
        """How good each answer of the committee of `members` is: float32 `(examples,)`, more is better.

        1 or 0 for `"accuracy"`, the log-likelihood for `"nll"`, less the Brier score for `"brier"`.
        """
        return self._cache(
            ("score", objective, *sorted(members)),
            lambda: _per_example_scores(self.probabilities(members), self.labels, objective),
        )

    def _cached_prediction(self, members):
        """Probabilities and votes of a committee. The last one asked for is at hand: its confidences come next."""
        members = sorted(members)  # a committee answers to the last bit the same, whoever is asked first
        if self._last_prediction[0] != members:
            log_probs = np.ascontiguousarray(self.log_probabilities[:, members], dtype=np.float32)
            probabilities = keras.ops.convert_to_numpy(subset_head(self.head, members)(log_probs))
            self._last_prediction = members, (probabilities, log_probs)
        return self._last_prediction[1]

    def _compute_confidences(self, members, measure):
        probabilities, log_probs = self._cached_prediction(members)
        return keras.ops.convert_to_numpy(confidence(measure, probabilities, log_probs))

    def _cache(self, key, compute):
        if key in self._cached_arrays:
            self._cached_arrays.move_to_end(key)
            return self._cached_arrays[key]
        self._cached_arrays[key] = value = compute()
        if len(self._cached_arrays) > _CACHE_SIZE:
            self._cached_arrays.popitem(last=False)
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExitStats:
    """What one stage answered.

    Attributes:
        members: Members asked by then.
        rate: Share of all examples answered here.
        accuracy, nll, ece: Of those answered here; None where there are none.
    """

    members: int
    rate: float
    accuracy: float | None
    nll: float | None
    ece: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """What a cascade did on one split.

    Attributes:
        probabilities: float32 `(examples, classes)`.
        members_used: int32 `(examples,)`.
        mflops: The average over the examples.
        worst_mflops: Of an image that goes as far as the thresholds let any go.
        exits: One for each stage.
        scores: Accuracy, NLL, ECE and Brier over all examples.
    """

    probabilities: np.ndarray
    members_used: np.ndarray
    mflops: float
    worst_mflops: float
    exits: tuple[ExitStats, ...]
    scores: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """The figures without the arrays, for JSON."""
        exits = [dataclasses.asdict(each) for each in self.exits]
        return {**self.scores, "mflops": self.mflops, "worst_mflops": self.worst_mflops, "exits": exits}


def simulate_cascade(predictions: MemberPredictions, config: CascadeConfig) -> SimulationResult:
    """What the cascade answers on these votes, with what effort and how well, exit by exit.

    Source: Wang et al. 2021, arXiv:2012.01988, section 4.
    """
    probabilities = predictions.probabilities(config.order)
    members_used = np.full(len(predictions.labels), config.sizes[-1], np.int32)
    undecided = np.ones(len(predictions.labels), bool)
    for size, threshold in zip(config.sizes, config.thresholds, strict=False):
        members = config.order[:size]
        exits_here = undecided & (predictions.confidences(members, config.confidence) >= np.float32(threshold))
        probabilities = np.where(exits_here[:, None], predictions.probabilities(members), probabilities)
        members_used[exits_here] = size
        undecided &= ~exits_here
    costs = {size: predictions.cost(config.order[:size]) for size in config.sizes}
    return SimulationResult(
        probabilities=probabilities,
        members_used=members_used,
        mflops=float(np.mean([costs[used] for used in members_used.tolist()])),
        worst_mflops=costs[max_members_used(config.sizes, config.thresholds)],
        exits=tuple(
            _exit_stats(size, members_used == size, probabilities, predictions.labels) for size in config.sizes
        ),
        scores=metrics.classification_metrics(probabilities, predictions.labels),
    )


def max_members_used(sizes: Sequence[int], thresholds: Sequence[float]) -> int:
    """The members that an image may need at most: a stage with a threshold of 0 or less lets none go on."""
    return next((size for size, threshold in zip(sizes, thresholds, strict=False) if threshold <= 0), sizes[-1])


def _exit_stats(size, mask, probabilities, labels):
    if not mask.any():
        return ExitStats(members=size, rate=0.0, accuracy=None, nll=None, ece=None)
    scores = metrics.classification_metrics(probabilities[mask], labels[mask])
    del scores["brier"]
    return ExitStats(members=size, rate=float(mask.mean()), **scores)


def _per_example_scores(probabilities, labels, objective):
    true_probabilities = probabilities[np.arange(len(labels)), labels]
    if objective == "accuracy":
        return (probabilities.argmax(axis=1) == labels).astype(np.float32)
    if objective == "nll":
        return np.log(np.maximum(true_probabilities, 1e-12))
    if objective == "brier":
        return 2 * true_probabilities - np.square(probabilities).sum(axis=1) - 1
    raise ValueError(f"objective must be accuracy, nll or brier. Received: {objective!r}")
