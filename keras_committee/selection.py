"""Which members, in which order and combined how, are to be shipped? The content of `selection.json`."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from keras_committee.errors import RunError
from keras_committee.files import write_json

FORMAT = 1
_MAX_SHOWN_CHARS = 60  # characters of a value that is refused
_WEIGHTED_HEAD = "weighted_geometric_mean"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectedMember:
    """One member of the selection.

    Attributes:
        run: The run folder, as a path from the folder of `selection.json` or absolute.
        index: The member's index there.
        weights: SHA-256 of its `model.keras`, in hexadecimal digits.
        name: What reports call it.
        parameters: Trainable weights.
        mflops: 2 x multiply-adds / 1e6 for one image.
        temperature: Its logits are divided by this before anything else.
    """

    run: str
    index: int
    weights: str
    name: str
    parameters: int
    mflops: float
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a cascade.

    Attributes:
        members: The first so many members have been asked when it ends.
        threshold: The committee of these answers where its confidence is at least this; None at the last stage, which
            always answers.
    """

    members: int
    threshold: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """A committee, or a cascade where there are `stages`.

    Attributes:
        members: In the order in which a cascade asks them. One may stand here twice: it counts twice.
        head: Name of the head, as `layers.get_head` takes it.
        weights: One for each member where the head is "weighted_geometric_mean", else None.
        stages: Of a cascade, by rising `members`, the last one all of them; None where all members always vote.
        confidence: One of `layers.CONFIDENCE_MEASURES`.
        classes: Names of the classes, in label order.
        report: How it was chosen and what it measured: objective, budget, validation, test, front.
    """

    members: tuple[SelectedMember, ...]
    head: str
    classes: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    stages: tuple[Stage, ...] | None = None
    confidence: str = "max_probability"
    report: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.members:
            raise ValueError("a selection has at least one member. Received: none")
        if (self.head == _WEIGHTED_HEAD) != (self.weights is not None):
            raise ValueError(f"{_WEIGHTED_HEAD} has weights, and no other head. Received: {self.head}, {self.weights}")
        if self.weights is not None and len(self.weights) != len(self.members):
            raise ValueError(f"{len(self.members)} members have as many weights. Received: {len(self.weights)}")
        if self.stages is None:
            return
        counts = [stage.members for stage in self.stages]
        if counts != sorted(set(counts)) or counts[:1] < [1] or counts[-1:] != [len(self.members)]:
            raise ValueError(
                f"stages must ask ever more members and at last all {len(self.members)}. Received: {counts}"
            )
        if any((stage.threshold is None) != (stage is self.stages[-1]) for stage in self.stages):
            raise ValueError("every stage but the last has a threshold, and the last has none")

    @property
    def kind(self) -> str:
        """ "committee" or "cascade"."""
        return "committee" if self.stages is None else "cascade"

    def head_layer(self) -> Any:
        """The layer that combines the votes of all members. Raises ValueError where there is no such head."""
        from keras_committee.layers import get_head

        return get_head(self.head, **({} if self.weights is None else {"weights": self.weights}))

    def write(self, path: str | Path) -> None:
        """Writes `selection.json`, whole or not at all. Raises ResourceError."""
        write_json(Path(path), {"format": FORMAT, "kind": self.kind, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The selection in file `path`. Raises RunError where it is none."""
        try:
            selection = cls._from_document(json.loads(Path(path).read_bytes()))
            selection._check_known_names()
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RunError(f"{path} is no selection: {reason}.\n  `keras-committee select RUN` makes one.") from error
        return selection

    @classmethod
    def _from_document(cls, document: Any) -> Self:
        if isinstance(document, dict) and document.get("format") != FORMAT:
            raise ValueError(f"its format is {document.get('format')!r}; this version reads {FORMAT}")
        fields: dict[str, Any] = _validated("", document, _SELECTION_SCHEMA)
        members = [_validated(f"members[{i}]", item, _MEMBER_SCHEMA) for i, item in enumerate(fields["members"])]
        stages = [_validated(f"stages[{i}]", each, _STAGE_SCHEMA) for i, each in enumerate(fields["stages"] or ())]
        fields["members"] = tuple(SelectedMember(**member) for member in members)
        fields["stages"] = None if fields["stages"] is None else tuple(Stage(**stage) for stage in stages)
        fields["weights"] = None if fields["weights"] is None else tuple(fields["weights"])
        fields["classes"] = tuple(fields["classes"])
        return cls(**fields)

    def _check_known_names(self) -> None:
        from keras_committee.layers.confidence import check_confidence

        self.head_layer()
        check_confidence(self.confidence)


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


# What each key holds, and how that is said.
_STRING, _NUMBER, _COUNT = (_is_string, "a text"), (_is_number, "a finite number"), (_is_count, "a whole number from 0")
_SELECTION_SCHEMA = {
    "members": (_is_list_of(lambda _: True), "a list"),
    "head": _STRING,
    "classes": (_is_list_of(_is_string), "a list of texts"),
    "weights": (_is_null_or(_is_list_of(_is_number)), "null or a list of finite numbers"),
    "stages": (_is_null_or(_is_list_of(lambda _: True)), "null or a list"),
    "confidence": _STRING,
    "report": (lambda value: isinstance(value, dict), "an object"),
}
_MEMBER_SCHEMA = {
    **dict.fromkeys(("run", "weights", "name"), _STRING),
    **dict.fromkeys(("index", "parameters"), _COUNT),
    "mflops": _NUMBER,
    "temperature": (lambda value: _is_number(value) and value > 0, "a finite number above 0"),
}
_STAGE_SCHEMA = {"members": _COUNT, "threshold": (_is_null_or(_is_number), "null or a finite number")}


def _validated(location: str, document: Any, schema: dict[str, tuple[Callable[[Any], bool], str]]) -> dict[str, Any]:
    """The values of `schema` in what was read at `location`. Raises ValueError where one is missing or of another kind."""
    if not isinstance(document, dict):
        raise ValueError(f"{location or 'it'} must be an object. Received: {_truncated(document)}")
    for key, (is_valid, expected) in schema.items():
        if key not in document:
            raise ValueError(f"{location or 'it'} has no {key!r}")
        if not is_valid(document[key]):
            raise ValueError(
                f"{location}{'.' * bool(location)}{key} must be {expected}. Received: {_truncated(document[key])}"
            )
    return {key: document[key] for key in schema}


def _truncated(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."
