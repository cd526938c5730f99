"""Read and damage TFRecord shards."""

import tensorflow as tf

HEADER, FOOTER = 12, 4  # bytes before and after a payload


def payloads(path):
    """Return the payloads of a shard, read by TensorFlow."""
    return list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())


def field(payload, name):
    """Return the only value of a field of a serialized example."""
    feature = tf.train.Example.FromString(payload).features.feature[name]
    return getattr(feature, feature.WhichOneof("kind")).value[0]


def rewrite(path, change):
    """Write a shard again, with `change(number, fields)` made to each example."""
    examples = [tf.train.Example.FromString(payload) for payload in payloads(path)]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, example in enumerate(examples):
            change(number, example.features.feature)
            writer.write(example.SerializeToString())


def record_offset(path, number):
    """Return the offset of a record."""
    return sum(HEADER + len(payload) + FOOTER for payload in payloads(path)[:number])


def flip(path, offset):
    """Change one bit of the byte at `offset`."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def remove_indices(folder):
    """Remove the indices in a folder."""
    for path in folder.glob(".*.index.*"):
        path.unlink()
