"""Which test images are training images too?

A network has seen them, so they say nothing about how it generalises. Only equal bytes are found. CIFAR has near
duplicates as well: 3.25 % of the test images of CIFAR-10 and 10 % of CIFAR-100. Source: Barz and Denzler 2020,
"Do We Train on Test Data?", arXiv:1902.00423.
"""

from collections.abc import Iterable, Sequence

from keras_committee.data.splits import Split, Splits

SHOWN = 5


def told(splits: Splits) -> str | None:
    """A sentence on the test images that are training or validation images too, or None where there are none."""
    parts = {"train": splits.train, "validation": splits.validation}
    pairs = zip(parts.items(), twins(list(parts.values()), splits.test), strict=True)
    found = [
        f"{splits.test.images.name(test)} is {name} image {part.images.name(place)}"
        for (name, part), places in pairs
        for test, place in places
    ]
    if not found:
        return None
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (
        f"{len(found)} of {len(splits.test)} test images are trained on as well: {', '.join(found[:SHOWN])}{more}.\n"
        "  What is measured on them is too good: take them out of one of the splits."
    )


def twins(parts: Sequence[Split], test: Split) -> list[list[tuple[int, int]]]:
    """For each of `parts` the places (in `test`, in the part) of equal images.

    Equal are those of equal pixels in memory, of equal bytes in files.
    """
    glances = _digests(test, range(len(test)), glance=True)
    return [_twins(part, test, glances) for part in parts]


def _twins(part: Split, test: Split, glances: dict[int, bytes]) -> list[tuple[int, int]]:
    seen = _digests(part, range(len(part)), glance=True)
    both = set(glances.values()) & set(seen.values())
    seen = _digests(part, (place for place, glance in seen.items() if glance in both))
    places = {digest: place for place, digest in reversed(seen.items())}  # the first of several
    near = _digests(test, (place for place, glance in glances.items() if glance in both))
    return [(place, places[digest]) for place, digest in near.items() if digest in places]


def _digests(split: Split, places: Iterable[int], *, glance: bool = False) -> dict[int, bytes]:
    """Of the images at `places`; with `glance` of the little of them that was read before."""
    places = list(places)
    return dict(zip(places, split.images.digests(places, glance=glance), strict=True))
