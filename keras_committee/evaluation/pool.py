"""Which members are there to choose from, in one run or several, and what does each say of every example?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from keras_committee.errors import DataError, RecipeError, VerificationError
from keras_committee.evaluation.member_info import Description, describe
from keras_committee.evaluation.predictions import Votes, votes_on
from keras_committee.files import file_hash
from keras_committee.recipe import Recipe
from keras_committee.run import Run


@dataclass(frozen=True, kw_only=True)
class PoolMember:
    """One member of a pool.

    Attributes:
        run: Its run folder.
        index: Its index there.
        weights: SHA-256 of its `model.keras`, in hexadecimal digits.
        name: The model's name.
        parameters: Trainable weights.
        mflops: 2 x multiply-adds / 1e6 for one image.
        architecture: Hash of its layers: members of one architecture differ in their weights alone.
    """

    run: Path
    index: int
    weights: str
    name: str
    parameters: int
    mflops: float
    architecture: str


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Members of one or more runs, whose classes and examples are the same.

    Attributes:
        members: In the order of the runs, and of the indices in each.
        classes: Names of the classes, in label order.
        votes: For each split float32 log probabilities `(examples, members, classes)`.
        labels: For each split int32 `(examples,)`.
        missing: Of each run, the indices of the members that are not trained.
    """

    members: tuple[PoolMember, ...]
    classes: tuple[str, ...]
    votes: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    missing: Mapping[str, list[int]]

    @property
    def mflops(self) -> np.ndarray:
        """float64 `(members,)`."""
        return np.array([member.mflops for member in self.members])


def gather(
    runs: Sequence[Run],
    splits: Sequence[str] = ("validation", "test"),
    *,
    min_members: int | None = None,
    allow_twins: bool = False,
) -> Pool:
    """The pool of all members of `runs`, with their votes on `splits`.

    Executes the recipes in the run folders; the caller holds the locks of the folders.

    Args:
        runs: At least one.
        splits: Of `"train"`, `"validation"` and `"test"`.
        min_members: A run is taken as it is with so many members; None wants all of each.
        allow_twins: Whether members may have identical weights.

    Raises:
        RecipeError: If a run is given twice, a split has no examples, or classes or channels differ.
        IncompleteError: If a run has too few members.
        DataError: If data cannot be read, or the examples of the runs differ.
        VerificationError: If a member's votes are no votes, or two members have identical weights.
    """
    _refuse_doubles(runs)
    recipes = [run.recipe() for run in runs]
    indices = [run.members_at_hand(recipe.members, min_members) for run, recipe in zip(runs, recipes, strict=True)]
    described = _describe_all(runs, indices, allow_twins)
    parts = [_votes_of(*each, splits) for each in zip(runs, indices, recipes, strict=True)]
    votes = {split: {str(run.path): part[split] for run, part in zip(runs, parts, strict=True)} for split in splits}
    for split, by_run in votes.items():
        require_equal_classes({run: each.classes for run, each in by_run.items()})
        require_equal_examples(by_run, split)
    firsts = {split: next(iter(by_run.values())) for split, by_run in votes.items()}
    return Pool(
        members=described,
        classes=firsts[splits[0]].classes,
        votes={split: _stacked(by_run.values()) for split, by_run in votes.items()},
        labels={split: first.labels for split, first in firsts.items()},
        missing={
            str(run.path): sorted(set(range(recipe.members)) - set(members))
            for run, recipe, members in zip(runs, recipes, indices, strict=True)
        },
    )


def _refuse_doubles(runs: Sequence[Run]) -> None:
    if not runs:
        raise ValueError("a pool has at least one run. Received: none")
    seen: dict[Path, Path] = {}
    for run in runs:
        first = seen.setdefault(run.path.resolve(), run.path)
        if first is not run.path:
            raise RecipeError(f"{first} and {run.path} are one run. Its members would count twice: name it once.")


def _describe_all(runs: Sequence[Run], indices: Sequence[Sequence[int]], allow_twins: bool) -> tuple[PoolMember, ...]:
    """The members, once it is sure that their classes, images and weights let them vote together."""
    places = [(run, index) for run, members in zip(runs, indices, strict=True) for index in members]
    names = [f"{run.path} member {index}" for run, index in places]
    trained = zip(names, [run.trained_classes() for run, _ in places], strict=True)
    require_equal_classes({name: classes for name, classes in trained if classes is not None})
    descriptions = [describe(run, index) for run, index in places]
    require_equal_channels({name: each.input_shape for name, each in zip(names, descriptions, strict=True)})
    if not allow_twins:
        shown = [str(index) if len(runs) == 1 else name for name, (_, index) in zip(names, places, strict=True)]
        digests = {name: each.weights for name, each in zip(shown, descriptions, strict=True)}
        refuse_twins(digests, str(runs[0].path) if len(runs) == 1 else "the pool")
    return tuple(_pool_member(*place, each) for place, each in zip(places, descriptions, strict=True))


def _votes_of(run: Run, members: Sequence[int], recipe: Recipe, wanted: Sequence[str]) -> dict[str, Votes]:
    splits = recipe.data.load()
    empty = [split for split in wanted if not len(getattr(splits, split))]
    if empty:
        choose = "\n  Members are chosen on it: give `validation` of the recipe's data a count or a fraction."
        raise RecipeError(f"the data of {run.path} have no {empty[0]} split.{choose if 'validation' in empty else ''}")
    return {split: votes_on(run, members, splits, split) for split in wanted}


def _stacked(votes: Iterable[Votes]) -> np.ndarray:
    return np.concatenate([each.log_probabilities for each in votes], axis=1)


def _pool_member(run: Run, index: int, description: Description) -> PoolMember:
    return PoolMember(
        run=run.path,
        index=index,
        weights=file_hash(run.member(index).model),
        name=description.name,
        parameters=description.parameters,
        mflops=description.mflops,
        architecture=description.architecture,
    )


def require_equal_classes(classes: Mapping[str, tuple[str, ...]]) -> None:
    """Raises RecipeError, with a table of members x classes, unless all members have the same in the same order."""
    known = list(classes.values())
    other = next((each for each in known if each != known[0]), known[0])
    if other == known[0]:
        return
    first, second = next(pair for pair in zip_longest(known[0], other, fillvalue="nothing") if pair[0] != pair[1])
    raise RecipeError(
        f"the members have different classes: where one has {first}, another has {second}.\n"
        + _table({member: f"{len(each)} classes: {', '.join(each)}" for member, each in classes.items()})
        + "\n  No committee can be made of them. Train them on data with the same classes in the same order."
    )


def require_equal_channels(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises RecipeError, with a table, unless all members take as many channels; `shapes` are height, width, channels.

    Members of different height and width see the same images, each at its own size.
    """
    if len({shape[2] for shape in shapes.values()}) <= 1:
        return
    raise RecipeError(
        "the members take images of different channels (height x width x channels).\n"
        + _table({member: " x ".join(map(str, shape)) for member, shape in shapes.items()})
        + "\n  No committee can be made of them: no image suits them all. Train them on the same kind of images."
    )


def require_equal_examples(votes: Mapping[str, Votes], split: str) -> None:
    """Raises DataError unless the votes of all runs are on the same examples in the same order.

    They are the same if their pixels are, or what the pixels were made from: a run's framing is its own.
    """
    (first, expected), *others = votes.items()
    for run, each in others:
        if each.data != expected.data and (not each.origin or each.origin != expected.origin):
            raise DataError(
                f"the {split} examples of {first} and {run} differ: {_difference(expected, each)}.\n"
                "  Members are compared on the same examples: train them on the same data and hold-out."
            )


def refuse_twins(weights: Mapping[str, str], where: str) -> None:
    """Raises VerificationError if two members have identical weights; `weights` are their hashes by their names."""
    owners: dict[str, str] = {}
    for member, digest in weights.items():
        twin = owners.setdefault(digest, member)
        if twin != member:
            raise VerificationError(
                f"members {twin} and {member} of {where} have identical weights (sha256 {digest[:12]}).\n"
                "  Does the recipe set a seed of its own in `member`? If it is meant so: --allow-twins."
            )


def _difference(a: Votes, b: Votes) -> str:
    if len(a.labels) != len(b.labels):
        return f"{len(a.labels)} and {len(b.labels)} of them"
    different = int((a.labels != b.labels).sum())
    return f"{different} of {len(a.labels)} labels" if different else "equal labels, but other images"


def _table(rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name.ljust(width)}  {text}" for name, text in rows.items())
