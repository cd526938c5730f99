"""What images lie in TFRecord shards: how many of each class, and how large?

Every shard is read once, as training would: each checksum is held, and the index that is kept spares training the same.
"""

import io
import statistics
from pathlib import Path

import numpy as np

from keras_committee.cli.init.image_stats import ImageStats, class_count_problems, shorter_sides, subsample
from keras_committee.data.preprocessing import resize
from keras_committee.data.record_index import Fields, load_or_build_index
from keras_committee.data.tfrecords import ShardFolder, read_records_json
from keras_committee.errors import raise_if_problems

HINT = "Mend or remove what is named above, then run the command again."


def collect_tfrecord_stats(directory: Path) -> ImageStats:
    """Looks at the shards that `data.imagenet_records` reads.

    Raises:
        DataError: Names all that is wrong with the shards, as training does, and the images that are none.
    """
    first_label = _first_label(directory)
    found = ShardFolder(directory=directory, transform=resize(1), first_label=first_label).find()
    splits = {"train": found.train, "validation": found.validation, "test": found.test}
    available = {name: split for name, split in splits.items() if split is not None}
    sides, unreadable = _sample_sides(available)
    raise_if_problems(
        f"imagenet_records({str(directory)!r})", [*class_count_problems(found.classes), *unreadable], HINT
    )
    training, counts = (_class_counts(found.classes, splits) for splits in ([found.train], available.values()))
    held_out = tuple(part for part in ("validation", "test") if part in available)
    side = round(statistics.median(sides))
    return ImageStats(
        class_counts=counts, training_counts=training, held_out=held_out, median_side=side, first_label=first_label
    )


def _first_label(directory):
    """What `records.json` says; else 0 where an example has that label, and 1, as in Model Garden's ImageNet."""
    shards = ShardFolder(directory=directory, transform=resize(1), first_label=1).shards()
    first_label = read_records_json(directory, lambda plan: int(plan["first_label"]))
    if first_label is None:
        index, _ = load_or_build_index([path for path in shards["train"] if path.exists()], Fields())
        return 0 if 0 in index.rows["label"] else 1
    return first_label


def _sample_sides(splits):
    sides, problems = [], []
    for split in splits.values():
        split_sides, split_problems = shorter_sides(
            {name: io.BytesIO(content) for name, content in _sample_contents(split)}
        )
        sides, problems = sides + split_sides, problems + split_problems
    return sides, problems


def _sample_contents(split):
    """The names and encoded images of examples that are evenly spread over the split."""
    for row in subsample(range(len(split))):
        yield split.images.name(row), split.images.read(row)


def _class_counts(classes, splits):
    counts = np.bincount(np.concatenate([split.labels for split in splits]), minlength=len(classes))
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}
