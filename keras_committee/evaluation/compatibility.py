"""Can members of several runs vote together: are they of other weights, the same classes, images and examples?"""

from collections.abc import Mapping
from itertools import zip_longest

from keras_committee.errors import DataError, RecipeError, VerificationError
from keras_committee.evaluation.votes import Votes


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
