"""How good is each member, and each committee of them?"""

import dataclasses
import hashlib
import itertools
import math
import random

import keras
import numpy as np

from keras_committee import flops, metrics
from keras_committee.errors import VerificationError
from keras_committee.evaluation.latency import latency
from keras_committee.evaluation.votes import Votes, cast_votes, load_member
from keras_committee.files import write_json
from keras_committee.layers import GeometricMean, head_name, head_of
from keras_committee.recipe import Recipe
from keras_committee.run import Run

# All 4,095 committees of twelve members; beyond that a size has this many of its subsets, drawn without repetition.
MOST_SUBSETS = 1000


def evaluate(
    run: Run,
    recipe: Recipe,
    split: str = "test",
    *,
    min_members: int | None = None,
    allow_twins: bool = False,
    timed: bool = False,
) -> dict:
    """Evaluate members and committees of every size on a split, and write `evaluation.json` into the run folder.

    Every committee size is taken over all its subsets of the members (over 1,000 of them drawn at random where there
    are more). `mflops` is 2 x multiply-adds / 1e6 for one image, summed over the members of a committee.

    Args:
        run: The run folder.
        recipe: Its recipe.
        split: `"train"`, `"validation"` or `"test"`.
        min_members: As in `cast_votes`; `missing` in the result says who is not there.
        allow_twins: Whether members may have identical weights.
        timed: Whether to measure the latency of each member, too: `"latency"` in milliseconds.

    Returns:
        The content of `evaluation.json`.

    Raises:
        IncompleteError: If too few members are trained.
        DataError: If the data cannot be read.
        VerificationError: If a member's votes are no votes, or two members have identical weights.
    """
    votes = cast_votes(run, recipe, split, min_members)
    head = recipe.head or GeometricMean()
    members = _members(run, votes, allow_twins)
    if timed:
        _time(run, members)
    probabilities = np.exp(votes.log_probabilities)
    result = {
        "recipe": run.recipe_file().name,
        "split": split,
        "examples": len(votes.labels),
        "classes": len(votes.classes),
        "head": head_name(head),
        "members": members,
        "missing": sorted(set(range(recipe.members)) - set(votes.members)),
        "committees": [
            committee_of_size(size, votes, head, [member["mflops"] for member in members])
            for size in range(1, len(members) + 1)
        ],
        "diversity": {
            "disagreement": metrics.disagreement(probabilities).tolist(),
            "double_fault": metrics.double_fault(probabilities, votes.labels).tolist(),
        },
    }
    write_json(run.path / "evaluation.json", result)
    run.journal("evaluated", split=split, examples=len(votes.labels))
    return result


def committee_of_size(size: int, votes: Votes, head, mflops: list[float]) -> dict:
    """Mean, standard deviation and range of each metric over the committees of `size` members.

    The standard deviation is that of the subsets at hand (divisor n), which share members: it tells how much the choice
    of members matters, and is no standard error.
    """
    subsets = subsets_of(votes.log_probabilities.shape[1], size)
    rows = [_summary(votes, subset, head) for subset in subsets]
    cost = float(np.mean([sum(mflops[member] for member in subset) for subset in subsets]))
    return {"size": size, "mflops": cost, **{name: _spread([row[name] for row in rows]) for name in rows[0]}}


def subsets_of(members: int, size: int) -> list[tuple[int, ...]]:
    """The subsets of `size` out of `members`: all of them, or MOST_SUBSETS drawn with a fixed seed."""
    if math.comb(members, size) <= MOST_SUBSETS:
        return list(itertools.combinations(range(members), size))
    draw, drawn = random.Random(0), set()
    while len(drawn) < MOST_SUBSETS:
        drawn.add(tuple(sorted(draw.sample(range(members), size))))
    return sorted(drawn)


def _summary(votes: Votes, subset: tuple[int, ...], head) -> dict[str, float]:
    members = [votes.members[place] for place in subset]
    probabilities = keras.ops.convert_to_numpy(head_of(head, members)(votes.log_probabilities[:, list(subset)]))
    return metrics.summary(probabilities, votes.labels)


def _spread(values: list[float]) -> dict:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": min(values),
        "max": max(values),
        "subsets": len(values),
    }


def _members(run: Run, votes: Votes, allow_twins: bool) -> list[dict]:
    rows, owners = [], {}
    for place, index in enumerate(votes.members):
        model = load_member(run.member(index).model)
        digest = hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest()
        twin = owners.setdefault(digest, index)
        if twin != index and not allow_twins:
            raise VerificationError(
                f"members {twin} and {index} of {run.path} have identical weights (sha256 {digest[:12]}).\n"
                "  Does the recipe set a seed of its own in `member`? If it is meant so: --allow-twins."
            )
        rows.append(
            {
                "index": index,
                "name": model.name,
                "parameters": flops.parameters(model),
                "mflops": flops.mflops(model),
                **metrics.summary(np.exp(votes.log_probabilities[:, place]), votes.labels),
            }
        )
    return rows


def _time(run: Run, members: list[dict]) -> None:
    models = [load_member(run.member(member["index"]).model) for member in members]
    for member, measured in zip(members, latency(models), strict=True):
        member["latency"] = [dataclasses.asdict(each) for each in measured]
