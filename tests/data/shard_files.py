"""TFRecord shards for the tests: what is in them, and how they are spoilt."""

import tensorflow as tf

HEADER, FOOTER = 12, 4  # bytes before and after a payload


def payloads(path):
    """The payloads of a shard, by TensorFlow's own reader."""
    return list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())


def field(payload, name):
    """The one value of a field of a serialized example."""
    feature = tf.train.Example.FromString(payload).features.feature[name]
    return getattr(feature, feature.WhichOneof("kind")).value[0]


def rewrite(path, change):
    """Writes a shard again, with `change(number, fields)` made to each example."""
    examples = [tf.train.Example.FromString(payload) for payload in payloads(path)]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, example in enumerate(examples):
            change(number, example.features.feature)
            writer.write(example.SerializeToString())


def begin(path, number):
    """The byte at which a record begins."""
    return sum(HEADER + len(payload) + FOOTER for payload in payloads(path)[:number])


def flip(path, place):
    """Changes one bit of the byte at `place`."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def forget(folder):
    """Removes the indices in a folder."""
    for path in folder.glob(".*.index.*"):
        path.unlink()
