"""Which members are there to choose from, in one run or several, and what does each say of every example?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from keras_committee.errors import DataError, RecipeError, VerificationError
from keras_committee.evaluation.member_info import MemberInfo, load_member_info
from keras_committee.evaluation.predictions import SplitPredictions, predict_split
from keras_committee.files import file_hash
from keras_committee.recipe import Recipe
from keras_committee.run import Run


@dataclass(frozen=True, kw_only=True)
class PoolMember:
    """One member of a pool.

    Attributes:
        run: Its run folder.
        index: Its index there.
        weights_hash: SHA-256 of its `model.keras`, in hexadecimal digits.
        name: The model's name.
        parameters: Trainable weights.
        mflops: 2 x multiply-adds / 1e6 for one image.
        architecture: Hash of its layers: members of one architecture differ in their weights alone.
    """

    run: Path
    index: int
    weights_hash: str
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
        predictions: For each split float32 log probabilities `(examples, members, classes)`.
        labels: For each split int32 `(examples,)`.
        missing: Of each run, the indices of the members that are not trained.
    """

    members: tuple[PoolMember, ...]
    classes: tuple[str, ...]
    predictions: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    missing: Mapping[str, list[int]]

    @property
    def mflops(self) -> np.ndarray:
        """float64 `(members,)`."""
        return np.array([member.mflops for member in self.members])


def load_pool(
    runs: Sequence[Run],
    splits: Sequence[str] = ("validation", "test"),
    *,
    min_members: int | None = None,
    allow_duplicate_weights: bool = False,
) -> Pool:
    """The pool of all members of `runs`, with their votes on `splits`.

    Executes the recipes in the run folders; the caller holds the locks of the folders.

    Args:
        runs: At least one.
        splits: Of `"train"`, `"validation"` and `"test"`.
        min_members: A run is taken as it is with so many members; None wants all of each.
        allow_duplicate_weights: Whether members may have identical weights.

    Raises:
        RecipeError: If a run is given twice, a split has no examples, or classes or channels differ.
        IncompleteError: If a run has too few members.
        DataError: If data cannot be read, or the examples of the runs differ.
        VerificationError: If a member's votes are no votes, or two members have identical weights.
    """
    _check_duplicates(runs)
    recipes = [run.recipe() for run in runs]
    indices = [run.available_members(recipe.members, min_members) for run, recipe in zip(runs, recipes, strict=True)]
    pool_members = _load_pool_members(runs, indices, allow_duplicate_weights)
    predictions_per_run = [_predict_splits(*each, splits) for each in zip(runs, indices, recipes, strict=True)]
    predictions = {
        split: {str(run.path): part[split] for run, part in zip(runs, predictions_per_run, strict=True)}
        for split in splits
    }
    for split, by_run in predictions.items():
        require_equal_classes({run: each.classes for run, each in by_run.items()})
        require_equal_examples(by_run, split)
    first_predictions = {split: next(iter(by_run.values())) for split, by_run in predictions.items()}
    return Pool(
        members=pool_members,
        classes=first_predictions[splits[0]].classes,
        predictions={split: _concatenate_members(by_run.values()) for split, by_run in predictions.items()},
        labels={split: first.labels for split, first in first_predictions.items()},
        missing={
            str(run.path): sorted(set(range(recipe.members)) - set(members))
            for run, recipe, members in zip(runs, recipes, indices, strict=True)
        },
    )


def _check_duplicates(runs: Sequence[Run]) -> None:
    if not runs:
        raise ValueError("a pool has at least one run. Received: none")
    seen: dict[Path, Path] = {}
    for run in runs:
        first = seen.setdefault(run.path.resolve(), run.path)
        if first is not run.path:
            raise RecipeError(f"{first} and {run.path} are one run. Its members would count twice: name it once.")


def _load_pool_members(
    runs: Sequence[Run], indices: Sequence[Sequence[int]], allow_duplicate_weights: bool
) -> tuple[PoolMember, ...]:
    """The members, once it is sure that their classes, images and weights let them vote together."""
    run_and_index = [(run, index) for run, members in zip(runs, indices, strict=True) for index in members]
    names = [f"{run.path} member {index}" for run, index in run_and_index]
    trained_classes = zip(names, [run.trained_classes() for run, _ in run_and_index], strict=True)
    require_equal_classes({name: classes for name, classes in trained_classes if classes is not None})
    member_infos = [load_member_info(run, index) for run, index in run_and_index]
    require_equal_channels({name: each.input_shape for name, each in zip(names, member_infos, strict=True)})
    if not allow_duplicate_weights:
        display_names = [
            str(index) if len(runs) == 1 else name for name, (_, index) in zip(names, run_and_index, strict=True)
        ]
        weight_hashes = {name: each.weights for name, each in zip(display_names, member_infos, strict=True)}
        check_no_duplicate_weights(weight_hashes, str(runs[0].path) if len(runs) == 1 else "the pool")
    return tuple(_pool_member(*place, each) for place, each in zip(run_and_index, member_infos, strict=True))


def _predict_splits(
    run: Run, members: Sequence[int], recipe: Recipe, split_names: Sequence[str]
) -> dict[str, SplitPredictions]:
    splits = recipe.data.load()
    empty_splits = [split for split in split_names if not len(getattr(splits, split))]
    if empty_splits:
        hint = "\n  Members are chosen on it: give `validation` of the recipe's data a count or a fraction."
        raise RecipeError(
            f"the data of {run.path} have no {empty_splits[0]} split.{hint if 'validation' in empty_splits else ''}"
        )
    return {split: predict_split(run, members, splits, split) for split in split_names}


def _concatenate_members(predictions: Iterable[SplitPredictions]) -> np.ndarray:
    return np.concatenate([each.log_probabilities for each in predictions], axis=1)


def _pool_member(run: Run, index: int, info: MemberInfo) -> PoolMember:
    return PoolMember(
        run=run.path,
        index=index,
        weights_hash=file_hash(run.member(index).model),
        name=info.name,
        parameters=info.parameters,
        mflops=info.mflops,
        architecture=info.architecture,
    )


def require_equal_classes(classes: Mapping[str, tuple[str, ...]]) -> None:
    """Raises RecipeError, with a table of members x classes, unless all members have the same in the same order."""
    all_classes = list(classes.values())
    mismatched = next((each for each in all_classes if each != all_classes[0]), all_classes[0])
    if mismatched == all_classes[0]:
        return
    first, second = next(
        pair for pair in zip_longest(all_classes[0], mismatched, fillvalue="nothing") if pair[0] != pair[1]
    )
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


def require_equal_examples(predictions_by_run: Mapping[str, SplitPredictions], split: str) -> None:
    """Raises DataError unless the votes of all runs are on the same examples in the same order.

    They are the same if their pixels are, or what the pixels were made from: a run's framing is its own.
    """
    (first, expected), *others = predictions_by_run.items()
    for run, predictions in others:
        if predictions.data_fingerprint != expected.data_fingerprint and (
            not predictions.source_fingerprint or predictions.source_fingerprint != expected.source_fingerprint
        ):
            raise DataError(
                f"the {split} examples of {first} and {run} differ: {_describe_difference(expected, predictions)}.\n"
                "  Members are compared on the same examples: train them on the same data and hold-out."
            )


def check_no_duplicate_weights(weight_hashes: Mapping[str, str], owner: str) -> None:
    """Raises VerificationError if two members have identical weights; `weight_hashes` are their hashes by their names."""
    first_with_hash: dict[str, str] = {}
    for member, digest in weight_hashes.items():
        duplicate = first_with_hash.setdefault(digest, member)
        if duplicate != member:
            raise VerificationError(
                f"members {duplicate} and {member} of {owner} have identical weights (sha256 {digest[:12]}).\n"
                "  Does the recipe set a seed of its own in `member`? If it is meant so: --allow-duplicate-weights."
            )


def _describe_difference(a: SplitPredictions, b: SplitPredictions) -> str:
    if len(a.labels) != len(b.labels):
        return f"{len(a.labels)} and {len(b.labels)} of them"
    different = int((a.labels != b.labels).sum())
    return f"{different} of {len(a.labels)} labels" if different else "equal labels, but other images"


def _table(rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name.ljust(width)}  {text}" for name, text in rows.items())
