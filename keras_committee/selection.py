"""The content of `selection.json`: the members of a committee or cascade, and how they are combined."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from keras_committee.choices import SET_METHODS
from keras_committee.errors import RunError
from keras_committee.files import expand_home, read_problem, read_record, write_record

_FORMAT = 1
_MAX_SHOWN_CHARS = 60  # of an invalid value in an error message
_WEIGHTED_HEAD = "weighted_geometric_mean"
_THRESHOLDS = ("threshold", "lower_threshold")  # of a stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """A changed image, which a network predicts in place of the image itself: mirrored, shifted, or both.

    Attributes:
        mirror: Whether the image is mirrored left to right.
        shift: Pixels by which the image is shifted down and to the right, then mirrored; negative: up and to the left.
            Its borders are reflected.
    """

    mirror: bool = False
    shift: int = 0

    def __str__(self) -> str:
        return ", ".join([*(["mirrored"] if self.mirror else []), *([f"shift {self.shift:+d}"] if self.shift else [])])

    @property
    def file_name(self) -> str:
        """The name of the view in file names, such as `"mirrored_shift+1"`."""
        return str(self).replace(", ", "_").replace(" ", "")


def views_to_try(*, mirror: bool, shifts: int) -> tuple[View, ...]:
    """Return the views of an image beside the image itself.

    Args:
        mirror: Whether to mirror.
        shifts: Pixels of the shifts up and to the left, and down and to the right; 0 for none.
    """
    mirrored_or_not = (False, True) if mirror else (False,)
    pixels = (0, -shifts, shifts) if shifts else (0,)
    views = [View(mirror=mirrored, shift=shift) for mirrored in mirrored_or_not for shift in pixels]
    return tuple(view for view in views if view != View())


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectedMember:
    """One member of the selection.

    Attributes:
        run: The run folder, absolute or relative to the folder of `selection.json`.
        index: Index of the member in its run.
        weights: SHA-256 of its `model.keras`, in hexadecimal digits.
        name: Its name in reports.
        parameters: Number of trainable weights.
        mflops: 2 x multiply-adds / 1e6 for one image; None if unknown.
        temperature: Divisor of its logits, applied first.
        view: The view of the image that it predicts; None for the image itself. Members of different views share the
            weights of one `model.keras`.
    """

    run: str
    index: int
    weights: str
    name: str
    parameters: int
    mflops: float | None
    temperature: float = 1.0
    view: View | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a cascade.

    Attributes:
        members: Number of members that have run at the end of the stage.
        threshold: The cascade stops here if the confidence of these members is at least this; None for the last stage,
            which always stops.
        lower_threshold: It also stops here if the confidence is below this, as an answer that is rejected whatever the
            later members add; None: it does not.
    """

    members: int
    threshold: float | None
    lower_threshold: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetRule:
    """Which classes belong to the prediction set of an answer.

    Attributes:
        coverage: The promise: the probability that the set of a new image holds its true class.
        method: One of `choices.SET_METHODS`.
        thresholds: Lowest conformity score of the classes in the set: one number, or one for each class, whose promise
            then holds for the images of each class.
        penalty, free_ranks: As in `aggregation.conformity`.
    """

    coverage: float
    method: str
    thresholds: tuple[float, ...]
    penalty: float = 0.0
    free_ranks: int = 0

    def rule(self) -> dict[str, Any]:
        """Return the arguments of `aggregation.prediction_sets` but the probabilities."""
        return {
            "method": self.method,
            "thresholds": self.thresholds,
            "penalty": self.penalty,
            "free_ranks": self.free_ranks,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcceptanceRule:
    """Which answers are accepted.

    Attributes:
        max_risk: The promise: the highest error rate among accepted answers.
        certainty: Probability that the promise holds, over the images that it was made on.
        threshold: Lowest confidence of an accepted answer.
    """

    max_risk: float
    certainty: float
    threshold: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Promise:
    """What was promised of the answers, on images that nothing was chosen with.

    Attributes:
        split: Name of the split that the images belong to.
        examples: Number of images that the promise was made on.
        chosen_on: Number of the other images of the split, with which the members were chosen.
        sets: The rule of prediction sets; None if none was requested.
        acceptance: The rule of acceptance; None if none was requested.
    """

    split: str
    examples: int
    chosen_on: int
    sets: SetRule | None = None
    acceptance: AcceptanceRule | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """A committee, or a cascade if it has `stages`.

    Attributes:
        members: The members, in the order in which a cascade runs them. A repeated member counts repeatedly.
        head: Name of the head, the layer that combines the members' predictions; see `layers.get_head`.
        classes: Names of the classes, in label order.
        weights: One per member for the head "weighted_geometric_mean", else None.
        stages: Stages of a cascade, with increasing `members`; None if all members always run.
        confidence: One of `layers.CONFIDENCE_MEASURES`.
        report: Objective, budget, validation and test scores, and Pareto front of the selection.
        promise: What `calibrate` promised of the answers of this committee or cascade; None before.
        reference: How the outputs are distributed on validation images, see `tfserving.drift.reference_distribution`;
            None if it is unknown.

    Raises:
        ValueError: If `members` is empty, or weights, stages or thresholds of sets do not match the members or classes.
    """

    members: tuple[SelectedMember, ...]
    head: str
    classes: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    stages: tuple[Stage, ...] | None = None
    confidence: str = "max_probability"
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    promise: Promise | None = None
    reference: dict[str, Any] | None = None

    def __post_init__(self):
        if not self.members:
            raise ValueError("members must hold at least one member. Received: none")
        if (self.head == _WEIGHTED_HEAD) != (self.weights is not None):
            raise ValueError(
                f"weights must be given for the head {_WEIGHTED_HEAD}, and for no other. "
                f"Received: head={self.head}, weights={self.weights}"
            )
        if self.weights is not None and len(self.weights) != len(self.members):
            raise ValueError(f"weights must be one per member ({len(self.members)}). Received: {len(self.weights)}")
        if self.stages is not None:
            self._check_stages(self.stages)
        sets = self.promise and self.promise.sets
        if sets and len(sets.thresholds) not in (1, len(self.classes)):
            raise ValueError(
                f"promise.sets.thresholds must hold one number, or one for each of {len(self.classes)} classes. "
                f"Received: {len(sets.thresholds)}"
            )

    def _check_stages(self, stages: tuple[Stage, ...]) -> None:
        thresholds, lower_thresholds = ([getattr(stage, name) for stage in stages] for name in _THRESHOLDS)
        check_stages([stage.members for stage in stages], thresholds[:-1], len(self.members), lower_thresholds[:-1])
        last = next((each[-1] for each in (thresholds, lower_thresholds) if each and each[-1] is not None), None)
        if last is not None:
            raise ValueError(f"the last stage must have no threshold. Received: {last}")

    @property
    def kind(self) -> str:
        """ "committee" or "cascade"."""
        return "committee" if self.stages is None else "cascade"

    def lower_thresholds(self) -> tuple[float, ...] | None:
        """Return the lower threshold of each stage but the last, 0 for a stage without one; None without any."""
        lower_thresholds = [stage.lower_threshold for stage in (self.stages or ())[:-1]]
        return tuple(lower or 0.0 for lower in lower_thresholds) if any(lower_thresholds) else None

    def head_layer(self) -> Any:
        """Return a new head for all members.

        Raises:
            ValueError: If no head has this name, or it does not accept the weights.
        """
        from keras_committee.layers import get_head

        return get_head(self.head, **({} if self.weights is None else {"weights": self.weights}))

    def write(self, path: str | Path) -> None:
        """Write the selection to `path` atomically.

        Raises:
            ResourceError: If the file cannot be written.
        """
        write_record(expand_home(path), {"format": _FORMAT, "kind": self.kind, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a selection from the file `path`.

        Raises:
            RunError: If the file is missing or is not a valid selection.
        """
        try:
            selection = cls._from_document(read_record(expand_home(path), may_be_edited=True))
            selection._check_known_names()
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(
                f"{path} is not a valid selection file: {read_problem(error)}.\n"
                "  Create one with `keras-committee select RUN`."
            ) from error
        return selection

    @classmethod
    def _from_document(cls, document: Any) -> Self:
        if isinstance(document, dict) and document.get("format") != _FORMAT:
            raise ValueError(f"its format must be {_FORMAT}. Received: {document.get('format')!r}")
        if isinstance(document, dict):
            document = {"promise": None, "reference": None, **document}  # files of versions without them
        fields = _validated("", document, _SELECTION_SCHEMA)
        fields["members"] = tuple(_member_from_document(i, item) for i, item in enumerate(fields["members"]))
        if fields["stages"] is not None:
            fields["stages"] = tuple(_stage_from_document(i, item) for i, item in enumerate(fields["stages"]))
        if fields["weights"] is not None:
            fields["weights"] = tuple(fields["weights"])
        fields["classes"] = tuple(fields["classes"])
        if fields["promise"] is not None:
            fields["promise"] = _promise_from_document(fields["promise"])
        return cls(**fields)

    def _check_known_names(self) -> None:
        from keras_committee.layers.confidence import check_confidence

        self.head_layer()
        check_confidence(self.confidence)


def check_stages(
    stages: Sequence[int],
    thresholds: Sequence[float | None],
    members: int,
    lower_thresholds: Sequence[float | None] | None = None,
) -> None:
    """Check the stages of a cascade.

    Args:
        stages: Number of members that have run at the end of each stage; increasing, the last one is `members`.
        thresholds: Confidence at which the cascade stops, for each stage except the last.
        members: Number of members of the cascade.
        lower_thresholds: Confidence below which the cascade stops, too, for each stage except the last, or None for it;
            None for no such stage.

    Raises:
        ValueError: If `stages` does not increase from 1 or more to `members`, `thresholds` is not one number for each
            stage except the last, or `lower_thresholds` is not one number up to the threshold, or None, for each.
    """
    if not stages or list(stages) != sorted(set(stages)) or stages[0] < 1 or stages[-1] != members:
        raise ValueError(f"stages must increase from 1 or more to all {members} members. Received: {list(stages)}")
    if len(thresholds) != len(stages) - 1 or any(value is None or math.isnan(value) for value in thresholds):
        raise ValueError(
            f"thresholds must hold one number for each of the {len(stages)} stages except the last. "
            f"Received: {list(thresholds)}"
        )
    lower_thresholds = [None] * len(thresholds) if lower_thresholds is None else lower_thresholds
    if len(lower_thresholds) != len(thresholds) or not all(
        lower is None or (upper is not None and lower <= upper)
        for lower, upper in zip(lower_thresholds, thresholds, strict=True)
    ):
        raise ValueError(
            f"lower_thresholds must hold None, or a number up to the threshold, for each of the {len(stages)} stages "
            f"except the last. Received: {list(lower_thresholds)}, with the thresholds {list(thresholds)}"
        )


def _stage_from_document(position: int, document: Any) -> Stage:
    if isinstance(document, dict):
        document = {"lower_threshold": None, **document}  # files of versions without windows
    return Stage(**_validated(f"stages[{position}]", document, _STAGE_SCHEMA))


def _member_from_document(position: int, document: Any) -> SelectedMember:
    location = f"members[{position}]"
    if isinstance(document, dict):
        document = {"view": None, **document}  # files of versions without views
    fields = _validated(location, document, _MEMBER_SCHEMA)
    if fields["view"] is not None:
        fields["view"] = View(**_validated(f"{location}.view", fields["view"], _VIEW_SCHEMA))
    return SelectedMember(**fields)


def _promise_from_document(document: Any) -> Promise:
    fields = _validated("promise", document, _PROMISE_SCHEMA)
    if fields["sets"] is not None:
        sets = _validated("promise.sets", fields["sets"], _SET_SCHEMA)
        fields["sets"] = SetRule(**{**sets, "thresholds": tuple(sets["thresholds"])})
    if fields["acceptance"] is not None:
        acceptance = _validated("promise.acceptance", fields["acceptance"], _ACCEPTANCE_SCHEMA)
        fields["acceptance"] = AcceptanceRule(**acceptance)
    return Promise(**fields)


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= 0


def _is_list_of(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_valid, value))


def _is_null_or(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_valid(value)


# For each key, a check of its value and the description of valid values.
_STRING = (_is_string, "a string")
_COUNT = (_is_count, "an integer of 0 or more")
_SELECTION_SCHEMA = {
    "members": (_is_list_of(lambda _: True), "a list"),
    "head": _STRING,
    "classes": (_is_list_of(_is_string), "a list of strings"),
    "weights": (_is_null_or(_is_list_of(_is_number)), "null or a list of finite numbers"),
    "stages": (_is_null_or(_is_list_of(lambda _: True)), "null or a list"),
    "confidence": _STRING,
    "report": (lambda value: isinstance(value, dict), "an object"),
    **dict.fromkeys(
        ("promise", "reference"), (_is_null_or(lambda value: isinstance(value, dict)), "null or an object")
    ),
}
_NUMBER = (_is_number, "a finite number")
_PROMISE_SCHEMA = {
    "split": _STRING,
    **dict.fromkeys(("examples", "chosen_on"), _COUNT),
    **dict.fromkeys(("sets", "acceptance"), (lambda _: True, "null or an object")),
}
_SET_SCHEMA = {
    "coverage": _NUMBER,
    "method": (lambda value: value in SET_METHODS, f"one of {', '.join(SET_METHODS)}"),
    "thresholds": (_is_list_of(_is_number), "a list of finite numbers"),
    "penalty": _NUMBER,
    "free_ranks": _COUNT,
}
_ACCEPTANCE_SCHEMA = {"max_risk": _NUMBER, "certainty": _NUMBER, "threshold": _NUMBER}
_MEMBER_SCHEMA = {
    **dict.fromkeys(("run", "weights", "name"), _STRING),
    **dict.fromkeys(("index", "parameters"), _COUNT),
    "mflops": (_is_null_or(_is_number), "null or a finite number"),
    "temperature": (lambda value: _is_number(value) and value > 0, "a finite number above 0"),
    "view": (lambda _: True, "null or an object"),
}
_VIEW_SCHEMA = {
    "mirror": (lambda value: isinstance(value, bool), "true or false"),
    "shift": (lambda value: isinstance(value, int) and _is_number(value), "an integer"),
}
_STAGE_SCHEMA = {"members": _COUNT, **dict.fromkeys(_THRESHOLDS, (_is_null_or(_is_number), "null or a finite number"))}


def _validated(location: str, document: Any, schema: Mapping[str, tuple[Callable[[Any], bool], str]]) -> dict[str, Any]:
    """Return the values of the keys of `schema` in `document`.

    Args:
        location: Where `document` stands in the file; empty for the whole file.
        document: A parsed JSON value.
        schema: For each key, a check of its value and the description of valid values.

    Raises:
        ValueError: If `document` is not an object, or a value is missing or invalid.
    """
    if not isinstance(document, dict):
        raise ValueError(f"{location or 'its content'} must be an object. Received: {_truncated(document)}")
    for key, (is_valid, expected) in schema.items():
        if key not in document:
            raise ValueError(f"{location or 'it'} has no {key!r}")
        if not is_valid(document[key]):
            name = f"{location}.{key}" if location else key
            raise ValueError(f"{name} must be {expected}. Received: {_truncated(document[key])}")
    return {key: document[key] for key in schema}


def _truncated(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."
