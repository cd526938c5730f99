"""What do the committees of the report say, and how good are they: of each architecture, and those that were chosen?"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_committee import metrics
from keras_committee.errors import RunError
from keras_committee.evaluation.cascade import Ballots, CascadePlan, run_cascade
from keras_committee.evaluation.evaluate import committee_of_size
from keras_committee.evaluation.predictions import Votes
from keras_committee.evaluation.report.series import Chosen, Series, architectures
from keras_committee.evaluation.report.sources import Source
from keras_committee.layers import GeometricMean, head_named, head_of
from keras_committee.selection import Selection


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """All members of all runs of a report, and their committees.

    Attributes:
        sources: The runs.
        split: Its name.
        labels: int32 `(examples,)`.
        classes: Names of the classes.
        votes: float32 log probabilities `(examples, members, classes)`, in the order of the runs.
        members: For each member its run's name, `architecture`, and its row of `evaluation.json`.
        series: The committees of each architecture, by rising cost.
        said: For each series what the committee of all its members says, float32 `(examples, classes)`.
        committee: What the committee of all members says, whatever their architecture.
        chosen: Those of the selections.
    """

    sources: tuple[Source, ...]
    split: str
    labels: np.ndarray
    classes: tuple[str, ...]
    votes: np.ndarray
    members: tuple[dict[str, Any], ...]
    series: tuple[Series, ...]
    said: tuple[np.ndarray, ...]
    committee: np.ndarray
    chosen: tuple[Chosen, ...]


def gather_panel(sources: Sequence[Source], split: str, selections: Sequence[Path]) -> Panel:
    """Everything that the sections of the report are made of.

    Raises:
        RunError: If a selection is none, or has a member that is in none of the runs.
    """
    votes = np.concatenate([source.votes.log_probabilities for source in sources], axis=1)
    members = [member for source in sources for member in _members(source)]
    pairs = [_series(name, members, votes, sources) for name in dict.fromkeys(each["architecture"] for each in members)]
    pairs += _mixed(sources, members, votes)
    pairs = sorted(pairs, key=lambda pair: pair[0].single["mflops"])
    first = sources[0].votes
    return Panel(
        sources=tuple(sources),
        split=split,
        labels=first.labels,
        classes=first.classes,
        votes=votes,
        members=tuple(members),
        series=tuple(series for series, _ in pairs),
        said=tuple(said for _, said in pairs),
        committee=_says(head_of(sources[0].head, first.members) if len(sources) == 1 else GeometricMean(), votes),
        chosen=tuple(_measured(path, selections, sources, votes) for path in selections),
    )


def _members(source: Source) -> list[dict[str, Any]]:
    rows = source.evaluation["members"]
    names = architectures([row["name"] for row in rows])
    return [{"run": source.name, "architecture": name, **row} for row, name in zip(rows, names, strict=True)]


def _series(
    name: str, members: Sequence[dict[str, Any]], votes: np.ndarray, sources: Sequence[Source]
) -> tuple[Series, np.ndarray]:
    """The committees of one architecture, from `evaluation.json` where they are those of one whole run."""
    places = tuple(place for place, member in enumerate(members) if member["architecture"] == name)
    runs = {members[place]["run"] for place in places}
    source = next(source for source in sources if source.name in runs)
    if len(runs) == 1 and len(places) == len(source.votes.members):
        return _made(name, places, members, votes, source.votes.labels, source)
    return _made(name, places, members, votes, source.votes.labels, None)


def _mixed(sources: Sequence[Source], members: Sequence[dict], votes: np.ndarray) -> list[tuple[Series, np.ndarray]]:
    """The committees of each run whose members are of several architectures."""
    pairs = []
    for source in sources:
        places = tuple(place for place, member in enumerate(members) if member["run"] == source.name)
        if len({members[place]["architecture"] for place in places}) > 1:
            series, said = _made(f"{source.name}, mixed", places, members, votes, source.votes.labels, source)
            pairs.append((dataclasses.replace(series, mixed=True), said))
    return pairs


def _made(
    name: str,
    places: tuple[int, ...],
    members: Sequence[dict],
    votes: np.ndarray,
    labels: np.ndarray,
    source: Source | None,
) -> tuple[Series, np.ndarray]:
    """A series; with a `source` it is that whole run, under its own head."""
    part = votes[:, list(places)]
    head = head_of(source.head, source.votes.members) if source else GeometricMean()
    said = _says(head, part)
    gained = (said.argmax(axis=1) == labels) - (part.argmax(axis=2) == labels[:, None]).mean(axis=1)
    committees = source.evaluation["committees"] if source else _committees(part, labels, [members[p] for p in places])
    series = Series(
        name=name,
        members=places,
        committees=tuple(committees),
        parameters=float(np.mean([members[place]["parameters"] for place in places])),
        gain=float(gained.mean()),
        gain_error=float(gained.std() / np.sqrt(len(labels))),
    )
    return series, said


def _committees(votes: np.ndarray, labels: np.ndarray, members: Sequence[dict]) -> list[dict]:
    cast = Votes(
        members=tuple(range(len(members))),
        log_probabilities=votes,
        labels=labels,
        classes=tuple(map(str, range(votes.shape[2]))),
    )
    costs = [member["mflops"] for member in members]
    return [committee_of_size(size, cast, GeometricMean(), costs) for size in range(1, len(members) + 1)]


def _says(head: Any, votes: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(head(np.ascontiguousarray(votes, np.float32)))


def _measured(path: Path, paths: Sequence[Path], sources: Sequence[Source], votes: np.ndarray) -> Chosen:
    """The selection in file `path`, on the votes of this report."""
    selection = Selection.read(path)
    places = _places(path, selection, sources)
    temperatures = np.array([member.temperature for member in selection.members], np.float32)
    head = head_named(selection.head, **({"weights": list(selection.weights)} if selection.weights else {}))
    costs = [member.mflops for member in selection.members]
    ballots = Ballots(votes[:, places] / temperatures[:, None], sources[0].votes.labels, costs, head)
    everyone = tuple(range(len(places)))
    full = {**metrics.summary(ballots.probabilities(everyone), ballots.labels), "mflops": ballots.cost(everyone)}
    named = {
        "name": selection.kind if len(paths) == 1 else f"{selection.kind} {path.parent.name}/{path.stem}",
        "kind": selection.kind,
        "members": tuple(member.name for member in selection.members),
        "full": full,
    }
    if selection.stages is None:
        scores = {name: value for name, value in full.items() if name != "mflops"}
        return Chosen(**named, mflops=full["mflops"], worst_mflops=full["mflops"], scores=scores)
    plan = CascadePlan(
        order=everyone,
        sizes=tuple(stage.members for stage in selection.stages),
        thresholds=tuple(stage.threshold for stage in selection.stages if stage.threshold is not None),
        confidence=selection.confidence,
    )
    ran = run_cascade(ballots, plan)
    exits = tuple(dataclasses.asdict(each) for each in ran.exits)
    return Chosen(**named, mflops=ran.mflops, worst_mflops=ran.worst_mflops, scores=ran.scores, exits=exits)


def _places(path: Path, selection: Selection, sources: Sequence[Source]) -> list[int]:
    hashes = [weights for source in sources for weights in source.votes.weights]
    for member in selection.members:
        if member.weights not in hashes:
            raise RunError(
                f"{path} has member {member.index} of {member.run}, whose weights (sha256 {member.weights[:12]}) are in"
                " none of the runs of this report.\n  Name that run, too; or select again if it was trained anew."
            )
    return [hashes.index(member.weights) for member in selection.members]
