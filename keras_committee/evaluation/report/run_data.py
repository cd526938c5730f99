"""What does each run folder know of itself?"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_committee import flops, metrics
from keras_committee.errors import RunError
from keras_committee.evaluation.cascade import Ballots, CascadePlan, run_cascade
from keras_committee.evaluation.evaluate import committee_of_size, evaluate
from keras_committee.evaluation.pool import require_equal_classes, require_equal_examples
from keras_committee.evaluation.predictions import Votes, cast_votes, loaded
from keras_committee.layers import GeometricMean, blocks, expected_depth, head_name, head_named, head_of
from keras_committee.models.loading import load_member
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.selection import Selection


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gates:
    """The stochastic depth of a run's members: residual blocks, how many are expected to run, multiply-adds saved."""

    blocks: int
    expected_depth: float
    expected_saving: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One run.

    Attributes:
        name: What the report calls it: the name of its folder, or its path where two folders share one.
        path: Its folder.
        doc: The recipe's docstring.
        knobs, environment, events: As in the run folder.
        evaluation: The content of `evaluation.json`, of this split and these members.
        votes: On the split of the report.
        head: Of the whole committee, with a place for each member of the recipe.
        histories: The rows of `history.jsonl` of each member that has them, by its index.
        so_far: Epochs, and the share of the validation split that the committee gets right after each; None where it
            is not known.
        gates: None for members of constant depth.
        added: `calibration` and `robustness`, the content of those JSON files that are there.
        examples: The split of the report, with its images.
    """

    name: str
    path: Path
    doc: str
    knobs: dict[str, Any]
    environment: dict[str, Any]
    events: list[dict[str, Any]]
    evaluation: dict[str, Any]
    votes: Votes
    head: Any
    histories: dict[int, list[dict[str, Any]]]
    so_far: tuple[list[int], list[float]] | None
    gates: Gates | None
    added: dict[str, dict[str, Any]]
    examples: Any


def read_sources(
    runs: Sequence[Run], split: str, *, min_members: int | None = None, allow_twins: bool = False
) -> list[Source]:
    """What each of `runs` knows; what is missing of votes and evaluations is computed first and kept there.

    Executes the recipes in the run folders; the caller holds the locks of the folders.

    Raises:
        IncompleteError: If a run has too few members.
        DataError: If data cannot be read, or the examples of the runs differ.
        RecipeError: If the classes of the runs differ.
        VerificationError: If votes are no votes, or two members of a run have identical weights.
    """
    names = [run.path.resolve().name for run in runs]
    names = [name if names.count(name) == 1 else str(run.path) for name, run in zip(names, runs, strict=True)]
    known: list[tuple[Any, Recipe, Any]] = []
    sources = [
        _read(run, name, *_loaded(run, known), split, min_members, allow_twins)
        for run, name in zip(runs, names, strict=True)
    ]
    require_equal_classes({source.name: source.votes.classes for source in sources})
    require_equal_examples({source.name: source.votes for source in sources}, split)
    return sources


def _loaded(run: Run, known: list[tuple[Any, Recipe, Any]]) -> tuple[Recipe, Any]:
    """The recipe with its data read, and these: read once for all runs that ask for the same."""
    recipe = run.recipe()
    for data, same, splits in known:
        if data == recipe.data:
            return dataclasses.replace(recipe, data=same.data), splits
    with_data, splits = loaded(recipe)
    known.append((recipe.data, with_data, splits))
    return with_data, splits


def _read(run: Run, name: str, recipe: Recipe, splits: Any, split: str, min_members: int | None, twins: bool) -> Source:
    votes = cast_votes(run, recipe, split, min_members)
    head = recipe.head or GeometricMean()
    evaluation = _kept_json(run.path / "evaluation.json")
    if evaluation is None or not says_the_same(evaluation, votes, split, head_name(head)):
        evaluation = evaluate(run, recipe, split, min_members=min_members, allow_twins=twins)
    histories = {index: _history(run.member(index).history) for index in votes.members}
    histories = {index: rows for index, rows in histories.items() if rows}
    added = {name: _kept_json(run.path / f"{name}.json") for name in ("calibration", "robustness")}
    return Source(
        name=name,
        path=run.path,
        doc=run.recipe_file().doc,
        knobs=run.knobs(),
        environment=run.environment(),
        events=run.events(),
        evaluation=evaluation,
        votes=votes,
        head=head,
        histories=histories,
        so_far=_so_far(run, votes.members, head, splits.validation.labels, histories),
        gates=_gates(run, histories),
        added={name: document for name, document in added.items() if document is not None},
        examples=getattr(splits, split),
    )


def says_the_same(evaluation: dict[str, Any], votes: Votes, split: str, head: str) -> bool:
    """Whether an `evaluation.json` is that of these votes: same split, members, head, and the scores they give."""
    try:
        told = [{name: row[name] for name in ("accuracy", "nll", "ece", "brier")} for row in evaluation["members"]]
        same = (evaluation["split"], evaluation["examples"], evaluation["head"]) == (split, len(votes.labels), head)
        same = same and [row["index"] for row in evaluation["members"]] == list(votes.members)
        same = same and len(evaluation["committees"]) == len(votes.members)
    except (KeyError, TypeError):  # of another version, or not ours
        return False
    if not same:
        return False
    scores = [
        metrics.summary(np.exp(votes.log_probabilities[:, place]), votes.labels) for place in range(len(votes.members))
    ]
    return all(
        np.isclose(row[name], score[name], rtol=1e-6, atol=1e-9)
        for row, score in zip(told, scores, strict=True)
        for name in score
    )


def _kept_json(path: Path) -> Any:
    """The document in file `path`, or None where there is no such file. Raises RunError."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(
            f"{path} is damaged: {error}.\n  Delete it; the command that wrote it writes it anew."
        ) from error


def _history(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}.\n  Move it away to report without it.") from error


def _so_far(
    run: Run, members: Sequence[int], head: Any, labels: np.ndarray, histories: dict[int, list[dict]]
) -> tuple[list[int], list[float]] | None:
    """The committee after each epoch that all members left their votes of."""
    if len(members) < 2 or not histories or not len(labels):
        return None
    shares = {}
    for row in next(iter(histories.values())):
        files = [run.member(index).epoch_votes(row["epoch"]) for index in members]
        if all(file.exists() for file in files):
            votes = np.stack([np.load(file, allow_pickle=False).astype(np.float32) for file in files], axis=1)
            said = keras.ops.convert_to_numpy(head_of(head, members)(votes)).argmax(axis=1)
            shares[row["epoch"]] = float((said == labels).mean()) if len(said) == len(labels) else None
    shares = {epoch: share for epoch, share in shares.items() if share is not None}
    return (list(shares), list(shares.values())) if shares else None


def _gates(run: Run, histories: dict[int, list[dict]]) -> Gates | None:
    gated = [index for index, rows in histories.items() if "realised_depth" in rows[0]]
    if not gated:
        return None
    model = load_member(run.member(gated[0]).model)
    return Gates(
        blocks=len(blocks(model)), expected_depth=expected_depth(model), expected_saving=flops.expected_saving(model)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """The committees of one architecture, of every size.

    Attributes:
        name: The architecture: the name that its members share.
        members: Their places among all members of the report, ascending.
        committees: As in `evaluation.json`, by rising size.
        parameters: Of one member, trainable; the mean where they differ.
        mixed: Whether these are committees of a run whose members differ.
        gain: How much more often the committee of all is right than its mean member, a difference of shares.
        gain_error: Its standard error over the examples, each compared with itself.
    """

    name: str
    members: tuple[int, ...]
    committees: tuple[dict[str, Any], ...]
    parameters: float
    mixed: bool = False
    gain: float = 0.0
    gain_error: float = 0.0

    @property
    def single(self) -> dict[str, Any]:
        return self.committees[0]

    @property
    def whole(self) -> dict[str, Any]:
        return self.committees[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """A committee or cascade from a `selection.json`, measured on the votes of this report.

    Attributes:
        name: What the report calls it.
        kind: "committee" or "cascade".
        members: Names of its members, in the order asked.
        mflops: Average MFLOPs of an image.
        worst_mflops: MFLOPs of an image that every stage is asked about.
        scores: Accuracy, NLL, ECE and Brier.
        exits: For each stage of a cascade: members, rate, accuracy, nll, ece; the last three None where no image ended.
        full: Accuracy and MFLOPs of all its members always voting.
    """

    name: str
    kind: str
    members: tuple[str, ...]
    mflops: float
    worst_mflops: float
    scores: dict[str, float]
    exits: tuple[dict[str, Any], ...] = ()
    full: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One thing that can be shipped, in the picture of accuracy against cost."""

    name: str
    mflops: float
    accuracy: float


def architectures(names: Sequence[str]) -> tuple[str, ...]:
    """The architecture of each member of a run.

    It is the member's name, but for members that are merely numbered: "linear_0" and "linear_1" are both "linear".
    """
    stems = {re.sub(r"[_-]?\d+$", "", name) for name in names}
    numbered = len(names) > 1 and len(set(names)) == len(names) and len(stems) == 1 and "" not in stems
    return tuple(stems) * len(names) if numbered else tuple(names)


def trade_points(series: Sequence[Series], chosen: Sequence[Chosen]) -> list[Point]:
    """Every committee in the picture; one of several subsets stands at their mean."""
    points = [
        Point(name=_named(each["size"], one), mflops=each["mflops"], accuracy=each["accuracy"]["mean"])
        for one in series
        for each in one.committees
    ]
    return points + [Point(name=each.name, mflops=each.mflops, accuracy=each.scores["accuracy"]) for each in chosen]


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: by rising cost, each more accurate than all cheaper ones."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.mflops, -point.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def _named(size: int, series: Series) -> str:
    return series.name if size == 1 and not series.mixed else f"{size} x {series.name}"


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
