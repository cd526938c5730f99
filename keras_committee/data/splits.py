"""Splits of the data, and the order in which their examples are read.

Evaluation reads a split in order, every example once. Training reads `Splits.stream`, a pure function of the seed and
the position: the example at position `p = step * batch_size + index in the batch` belongs to epoch `p // n` over the
`n` training examples, and each epoch has its own order and its own table of augmentation draws. The mixing of a batch
is drawn for its step, since a batch may contain examples of two epochs. A stream that starts at step `s` therefore
equals the tail of the one that starts at 0, bit for bit, and a resumed run reads what an uninterrupted one would have
read.
"""

import dataclasses
import functools
import hashlib

import numpy as np

from keras_committee.data.augment import Augmentation, draw_epoch, make_augment_fn
from keras_committee.data.images import EncodedImages, InMemoryImages
from keras_committee.data.lazy_tensorflow import tf
from keras_committee.data.mix import BatchMix, mix_targets
from keras_committee.data.preprocessing import ImageTransform
from keras_committee.data.resampling import Resampling, balanced_order
from keras_committee.errors import DataError
from keras_committee.split_sizes import full_batches

MIX_TABLE_ROWS = 1024  # steps drawn at once: one Python call per step would cost more than the mixing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Examples in a fixed order.

    Args:
        images: `InMemoryImages`, or `EncodedImages` such as `ImageFiles`.
        labels: Class of each image, int32 `(examples,)`.
    """

    images: InMemoryImages | EncodedImages
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return self.images.shape

    @property
    def transform(self) -> ImageTransform:
        """The transform from any image to one of the split's."""
        return self.images.transform

    def subset(self, indices: np.ndarray) -> "Split":
        """Return the examples at `indices`, in that order."""
        return Split(images=self.images.subset(indices), labels=self.labels[indices])

    def batches(self, batch_size: int) -> "tf.data.Dataset":
        """Return every example once, in order: uint8 `(b, h, w, c)` and int32 `(b,)`; the last batch may be smaller."""
        gather, labels = self.images.make_gather_fn(), _cpu_constant(self.labels)
        dataset = tf.data.Dataset.range(len(self)).batch(batch_size)
        dataset = dataset.map(
            lambda indices: (gather(indices), tf.gather(labels, indices)),
            num_parallel_calls=self.images.parallel_calls,
        )
        return _prefetch_deterministic(dataset)

    def fingerprint(self) -> str:
        """Return the SHA-256, in hex, of the images' digest and the labels; equal for equal examples in equal order."""
        return self._hash(self.images.digest())

    def source_id(self) -> str:
        """Return the fingerprint of the encoded images and the labels; the transform does not change it."""
        return self._hash(self.images.source_id())

    def _hash(self, digest):
        return hashlib.sha256(digest + self.labels.astype("<i4").tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """The loaded data: training, validation and test split, and the stream of training batches.

    Args:
        classes: Class names, in label order.
        train: The training split.
        validation: The validation split.
        test: The test split.
        batch_size: Examples per training step, over all devices.
        augment: Augmentation of the training images, or None.
        resampling: Which training examples each member sees; None: all of them.
        is_balanced: Whether each epoch has equally many examples of each class; see `balanced_order`.
        member: Index of the member whose examples `stream` reads; None reads all.
    """

    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    batch_size: int
    augment: Augmentation | None = None
    resampling: Resampling | None = None
    is_balanced: bool = False
    member: int | None = None

    def for_member(self, index: int) -> "Splits":
        """Return the same data, of which `stream` reads the training examples of member `index`."""
        return dataclasses.replace(self, member=index)

    @functools.cached_property
    def training_rows(self) -> np.ndarray:
        """The training examples that the member sees, with repetitions: int64 `(rows,)`."""
        if self.resampling is None or self.member is None:
            return np.arange(len(self.train))
        return self.resampling.rows(self.train.labels, self.member)

    def training_fingerprint(self) -> str:
        """Return the fingerprint of the training split, and of the examples that the member sees, if not all."""
        fingerprint = self.train.fingerprint()
        if self.resampling is None or self.member is None:
            return fingerprint
        return hashlib.sha256(fingerprint.encode() + self.training_rows.astype("<i8").tobytes()).hexdigest()

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in one epoch, the same for all members.

        Raises:
            DataError: If there are fewer training examples than one batch.
        """
        examples = len(self.train) if self.resampling is None else self.resampling.epoch_size(len(self.train))
        steps = full_batches(examples, self.batch_size)
        if steps == 0:
            whose = "" if self.resampling is None else " of a member"
            raise DataError(
                f"{examples} training examples{whose} do not fill one batch of {self.batch_size}. "
                "Choose a smaller batch_size or provide more data."
            )
        return steps

    def stream(
        self,
        seed: int,
        first_step: int,
        steps: int,
        batch_augment: BatchMix | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> "tf.data.Dataset":
        """Return `steps` full training batches: augmented uint8 images `(batch, h, w, c)` and int32 labels `(batch,)`.

        With `batch_augment` the augmented images of a batch are mixed, and the labels become soft targets, float32
        `(batch, classes)` with sum 1.

        Args:
            seed: Integer of 0 or more, which decides order, augmentation and mixing.
            first_step: Step of the first batch, counted from 0 over all epochs.
            steps: Number of batches.
            batch_augment: Mixing of the images of a batch, or None.
            shard: Index and number of equal parts of a batch. Only the rows of this part are returned, and only their
                images are read and decoded (with `batch_augment` also the next row, the partner of the last).

        Raises:
            DataError: If there are no training examples.
            ValueError: If an argument is negative.
        """
        if min(seed, first_step, steps) < 0:
            raise ValueError(
                f"seed, first_step and steps must be 0 or more. Received: {seed=}, {first_step=}, {steps=}"
            )
        if len(self.train) == 0:
            raise DataError("There are no training examples. Provide more data.")
        read_images, labels = make_augment_fn(self.train.images, self.augment), _cpu_constant(self.train.labels)

        def load_batch(indices, draws):
            return read_images(indices, draws), tf.gather(labels, indices)

        dataset = self._index_batches(seed, first_step, steps)
        shard_index, num_shards = shard
        shard_size = self.batch_size // num_shards
        if num_shards > 1:
            num_rows = shard_size + (batch_augment is not None)
            rows = np.arange(shard_index * shard_size, shard_index * shard_size + num_rows) % self.batch_size
            dataset = dataset.map(lambda *batch: tuple(tf.gather(tensor, rows) for tensor in batch))
        dataset = dataset.map(load_batch, num_parallel_calls=self.train.images.parallel_calls)
        if batch_augment:
            dataset = self._mix_batches(dataset, batch_augment, seed, first_step, steps, shard_size)
        return _prefetch_deterministic(dataset)

    def batch_indices(self, seed: int, first_step: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the examples of `steps` batches of the stream, and their draws.

        Args:
            seed: As in `stream`.
            first_step: As in `stream`.
            steps: As in `stream`.

        Returns:
            Indices of training examples, int64 `(steps, batch)`, and rows of draws, int32 `(steps, batch, k)`.
        """
        parts = list(self._iter_epochs(seed, first_step, steps))
        order, draws = (np.concatenate(arrays)[: steps * self.batch_size] for arrays in zip(*parts, strict=True))
        return order.reshape(steps, self.batch_size), draws.reshape(steps, self.batch_size, -1)

    def _iter_epochs(self, seed, first_step, steps):
        """Yield, for each epoch over the examples, their order, int64 `(n,)`, and draws in that order, int32 `(n, k)`.

        The draws are a table over the examples, so that the draws of an example do not depend on the order. A repeated
        example has several rows of it. With balanced classes the table is over the order, for the same reason. The
        first epoch begins at `first_step`; the last one is whole.
        """
        rows = self.training_rows
        num_examples = len(rows)
        first_position, end_position = first_step * self.batch_size, (first_step + steps) * self.batch_size
        for epoch in range(first_position // num_examples, -(-end_position // num_examples)):
            start = max(0, first_position - epoch * num_examples)
            rng = np.random.default_rng((seed, epoch, 0))
            draws = draw_epoch(self.augment, seed, epoch, num_examples)
            if self.is_balanced:
                order = balanced_order(self.train.labels[rows], rng)
            else:
                order = rng.permutation(num_examples)
                draws = draws[order]
            yield rows[order][start:], draws[start:]

    def _index_batches(self, seed, first_step, steps):
        """Return batches of example indices, int64 `(batch,)`, and of their draws, int32 `(batch, k)`."""

        def generate_epochs():  # Python runs once per epoch, not per example or batch
            yield from self._iter_epochs(seed, first_step, steps)

        width = draw_epoch(self.augment, seed, 0, 0).shape[1]
        signature = (tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None, width), tf.int32))
        dataset = tf.data.Dataset.from_generator(generate_epochs, output_signature=signature)
        dataset = dataset.rebatch(self.batch_size, drop_remainder=True).take(steps)
        return dataset.apply(tf.data.experimental.assert_cardinality(steps))

    def _mix_batches(self, dataset, batch_augment, seed, first_step, steps, num_rows):
        """Mix each batch and return its first `num_rows` rows.

        Step `s` uses row `s % MIX_TABLE_ROWS` of table `s // MIX_TABLE_ROWS`.
        """

        def draw_table(table_index, rows=MIX_TABLE_ROWS):
            return batch_augment.draw(np.random.default_rng((seed, table_index, 2)), rows, self.train.image_shape)

        def generate_tables():  # Python runs once per table
            for table_index in range(first_step // MIX_TABLE_ROWS, -(-(first_step + steps) // MIX_TABLE_ROWS)):
                yield draw_table(table_index)[max(0, first_step - table_index * MIX_TABLE_ROWS) :]

        def mix_batch(examples, draws):
            images, own_weight = batch_augment.apply(examples[0], draws)
            return images[:num_rows], mix_targets(examples[1], own_weight, len(self.classes))[:num_rows]

        empty_table = draw_table(0, rows=0)
        signature = tf.TensorSpec((None, empty_table.shape[1]), empty_table.dtype)
        draws = tf.data.Dataset.from_generator(generate_tables, output_signature=signature).unbatch()
        dataset = tf.data.Dataset.zip(dataset, draws).map(mix_batch, num_parallel_calls=2)
        return dataset.apply(tf.data.experimental.assert_cardinality(steps))


def _cpu_constant(array):
    with tf.device("CPU:0"):
        return tf.constant(array)


def _prefetch_deterministic(dataset):
    """Prefetch two batches, in order, without the autotuner.

    The autotuner sleeps up to a minute between two updates, and the destruction of an iterator waits for it: the end of
    an epoch could take as long as the epoch.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    return dataset.prefetch(2).with_options(options)
