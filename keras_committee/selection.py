"""Which members, in which order and combined how, are to be shipped? The content of `selection.json`."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Self

from keras_committee.errors import CommitteeError, RunError
from keras_committee.files import write_json

FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChosenMember:
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
        head: Name of the head, as `layers.head_named` takes it.
        weights: One for each member where the head is "weighted_geometric_mean", else None.
        stages: Of a cascade, by rising `members`, the last one all of them; None where all members always vote.
        confidence: One of `layers.CONFIDENCES`.
        classes: Names of the classes, in label order.
        report: How it was chosen and what it measured: objective, budget, validation, test, front.
    """

    members: tuple[ChosenMember, ...]
    head: str
    classes: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    stages: tuple[Stage, ...] | None = None
    confidence: str = "max_probability"
    report: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.members:
            raise ValueError("a selection has at least one member. Received: none")
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

    def write(self, path: str | Path) -> None:
        """Writes `selection.json`, whole or not at all. Raises ResourceError."""
        write_json(Path(path), {"format": FORMAT, "kind": self.kind, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The selection in file `path`. Raises RunError where it is none."""
        try:
            document = json.loads(Path(path).read_bytes())
            return cls._of(document)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, CommitteeError):
                raise
            raise RunError(f"{path} is no selection: {error}.\n  `keras-committee select RUN` makes one.") from error

    @classmethod
    def _of(cls, document: dict[str, Any]) -> Self:
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}; this version reads {FORMAT}")
        stages, weights = document["stages"], document["weights"]
        return cls(
            members=tuple(ChosenMember(**member) for member in document["members"]),
            head=document["head"],
            classes=tuple(document["classes"]),
            weights=None if weights is None else tuple(weights),
            stages=None if stages is None else tuple(Stage(**stage) for stage in stages),
            confidence=document["confidence"],
            report=document["report"],
        )
