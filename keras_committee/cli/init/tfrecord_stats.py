"""What images lie in TFRecord shards: how many of each class, and how large?

Every shard is read once, as training would: each checksum is held, and the index that is kept spares training the same.
"""

import io
import statistics
from pathlib import Path

import numpy as np

from keras_committee.cli.init.image_stats import Survey, shorter_sides, spread, too_few
from keras_committee.data.preprocessing import resized
from keras_committee.data.record_index import Fields, record_index
from keras_committee.data.tfrecords import ShardFolder, planned
from keras_committee.errors import refuse

MEND = "Mend or remove what is named above, then run the command again."


def survey_shards(directory: Path) -> Survey:
    """Looks at the shards that `data.imagenet_records` reads.

    Raises:
        DataError: Names all that is wrong with the shards, as training does, and the images that are none.
    """
    first = _first_label(directory)
    found = ShardFolder(directory=directory, framing=resized(1), first_label=first).find()
    splits = {"train": found.train, "validation": found.validation, "test": found.test}
    there = {part: split for part, split in splits.items() if split is not None}
    sides, unreadable = _sides(there)
    refuse(f"imagenet_records({str(directory)!r})", [*too_few(found.classes), *unreadable], MEND)
    training, counts = (_counts(found.classes, splits) for splits in ([found.train], there.values()))
    held_out = tuple(part for part in ("validation", "test") if part in there)
    side = round(statistics.median(sides))
    return Survey(counts=counts, training=training, held_out=held_out, side=side, first_label=first)


def _first_label(directory):
    """What `records.json` says; else 0 where an example has that label, and 1, as in Model Garden's ImageNet."""
    shards = ShardFolder(directory=directory, framing=resized(1), first_label=1).shards()
    first = planned(directory, lambda plan: int(plan["first_label"]))
    if first is None:
        index, _ = record_index([path for path in shards["train"] if path.exists()], Fields())
        return 0 if 0 in index.rows["label"] else 1
    return first


def _sides(splits):
    sides, problems = [], []
    for split in splits.values():
        some, wrong = shorter_sides({name: io.BytesIO(content) for name, content in _contents(split)})
        sides, problems = sides + some, problems + wrong
    return sides, problems


def _contents(split):
    """The names and encoded images of examples that are evenly spread over the split."""
    for row in spread(range(len(split))):
        yield split.images.name(row), split.images.read(row)


def _counts(classes, splits):
    counts = np.bincount(np.concatenate([split.labels for split in splits]), minlength=len(classes))
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}
