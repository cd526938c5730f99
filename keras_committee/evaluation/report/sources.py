"""What does each run folder know of itself?"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_committee import flops, metrics
from keras_committee.errors import RunError
from keras_committee.evaluation.evaluate import evaluate
from keras_committee.evaluation.pool import require_equal_classes, require_equal_examples
from keras_committee.evaluation.predictions import Votes, cast_votes, loaded
from keras_committee.layers import GeometricMean, blocks, expected_depth, head_name, head_of
from keras_committee.models.loading import load_member
from keras_committee.recipe import Recipe
from keras_committee.run import Run


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
