"""How does an image file become an example in Model Garden's format?

The fields, and what becomes of files that are no RGB or grey JPEG, are those of the script that made Model Garden's
ImageNet (tensorflow/tpu, tools/datasets/imagenet_to_gcs.py); `official.vision` reads `image/encoded` and
`image/class/label` of them.
"""

import io
import re

import tensorflow as tf
from PIL import Image

from keras_committee.data.decode import decode_image

FIRST_LABEL = 1  # Model Garden keeps 0 for the background
_WORDNET = re.compile(r"(?P<synset>n\d{8})(?:[_ -]+(?P<text>.+))?")


def encoded_example(content: bytes, filename: str, label: int, name: str, *, keep: bool = False) -> tuple[bytes, bool]:
    """A serialized `tf.train.Example`, and whether the image was encoded anew.

    Args:
        content: The image file's.
        filename: Its name, without folders.
        label: The class, counted from 0; written as `label + FIRST_LABEL`.
        name: The class folder's name. `n01440764_tench` gives the synset `n01440764` and the text `tench`; any other
            name is both.
        keep: Whether PNG and CMYK stay as they are. Model Garden reads JPEG only, so they become RGB JPEGs of quality
            100 otherwise.

    Raises:
        OSError: If it is no image.
    """
    with Image.open(io.BytesIO(content)) as image:
        (width, height), kind, mode = image.size, image.format, image.mode
    again = not keep and (kind == "PNG" or mode == "CMYK")
    if again:
        content = tf.io.encode_jpeg(decode_image(content), format="rgb", quality=100).numpy()
    synset, text = class_words(name)
    features = {
        "image/height": _integer(height),
        "image/width": _integer(width),
        "image/colorspace": _bytes(b"RGB"),
        "image/channels": _integer(3),
        "image/class/label": _integer(label + FIRST_LABEL),
        "image/class/synset": _bytes(synset.encode()),
        "image/class/text": _bytes(text.encode()),
        "image/format": _bytes(b"PNG" if kind == "PNG" and not again else b"JPEG"),
        "image/filename": _bytes(filename.encode(errors="surrogateescape")),
        "image/encoded": _bytes(content),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(), again


def class_words(name: str) -> tuple[str, str]:
    """Synset and text of the class in a folder of this name."""
    match = _WORDNET.fullmatch(name)
    return (match["synset"], match["text"] or name) if match else (name, name)


def _integer(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def _bytes(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
