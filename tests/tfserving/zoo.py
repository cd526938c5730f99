"""Small SavedModels for the rules of the REST API: dtypes, named tensors, images and tf.Examples.

To write them and a models.config for TF Serving:

    python tests/tfserving/zoo.py FOLDER
"""

import pathlib
import sys

import tensorflow as tf
from half_plus_two import save_half_plus_two

KINDS = (
    "float32",
    "float64",
    "float16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)


def spec(dtype, name="x", shape=(None,)):
    return tf.TensorSpec(shape, dtype, name)


def save(folder, signatures, version=1):
    path = pathlib.Path(folder) / str(version)
    module = tf.Module()
    module.functions = signatures
    tf.saved_model.save(module, str(path), signatures=signatures)


def same(dtype):
    return tf.function(lambda x: {"y": tf.identity(x)}, input_signature=[spec(dtype, shape=None)])


def save_kinds(folder):
    """`kinds`: the identity, with one signature per dtype."""
    signatures = {f"of_{kind}": same(kind) for kind in KINDS}
    signatures["serving_default"] = same(tf.string)
    signatures["to_uint16"] = tf.function(lambda x: {"y": tf.cast(x, tf.uint16)}, input_signature=[spec(tf.int32)])
    signatures["as_bytes"] = tf.function(lambda x: {"y_bytes": tf.identity(x)}, input_signature=[spec(tf.string)])
    save(folder, signatures)


@tf.function(input_signature=[spec(tf.float32, "a"), spec(tf.float32, "b")])
def add(a, b):
    return {"sum": a + b, "difference": a - b}


@tf.function(input_signature=[spec(tf.float32)])
def uneven(x):
    return {"all": tf.identity(x), "first": x[:1]}


@tf.function(input_signature=[spec(tf.float32)])
def scalar(x):
    return {"total": tf.reduce_sum(x)}


@tf.function(input_signature=[spec(tf.float32)])
def logarithm(x):
    return {"y": tf.math.log(x)}


def save_two(folder):
    """`two`: two inputs and two outputs, and outputs that JSON rows cannot represent."""
    save(folder, {"serving_default": add, "uneven": uneven, "scalar": scalar, "logarithm": logarithm})


def probabilities(image):
    mean = tf.reduce_mean(tf.ensure_shape(image, [None, 8, 8, 3]), [1, 2]) / 255.0
    classes = tf.tile([["red", "green", "blue"]], [tf.shape(image)[0], 1])
    return {
        "probabilities": mean,
        "label": tf.gather(tf.constant(["red", "green", "blue"]), tf.argmax(mean, 1)),
    }, classes


def decode(content):
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    return tf.image.resize(tf.ensure_shape(image, [None, None, 3]), [8, 8])


def decoded(contents):
    return tf.map_fn(decode, contents, fn_output_signature=tf.TensorSpec([8, 8, 3], tf.float32))


@tf.function(input_signature=[spec(tf.float32, "image", (None, None, None, None))])
def see(image):
    return probabilities(image)[0]


@tf.function(input_signature=[spec(tf.string, "image_bytes")])
def see_bytes(image_bytes):
    return probabilities(decoded(image_bytes))[0]


@tf.function(input_signature=[spec(tf.string, "inputs")])
def see_examples(inputs):
    parsed = tf.io.parse_example(inputs, {"image/encoded": tf.io.FixedLenFeature([], tf.string)})
    answer, classes = probabilities(decoded(parsed["image/encoded"]))
    return {"scores": answer["probabilities"], "classes": classes}


def save_image(folder):
    """`image`: the mean color of 8x8 pixels, given as floats, as PNG or JPEG bytes, or as tf.Examples."""
    save(folder, {"serving_default": see, "predict_bytes": see_bytes, "classify": see_examples})


def save_zoo(folder):
    """Write half_plus_two (version 123), kinds, two and image (version 1) into `folder`."""
    folder = pathlib.Path(folder)
    save_half_plus_two(folder / "half_plus_two")
    save_kinds(folder / "kinds")
    save_two(folder / "two")
    save_image(folder / "image")


def models_config(folder):
    """Return a models.config for the models of `save_zoo`.

    It requires `--allow_version_labels_for_unavailable_models`.
    """
    lines = []
    for name in ("half_plus_two", "kinds", "two", "image"):
        label = 'version_labels { key: "lab" value: 123 }' if name == "half_plus_two" else ""
        lines.append(f'config {{ name: "{name}" base_path: "{folder}/{name}" model_platform: "tensorflow" {label} }}\n')
    return "model_config_list {\n" + "".join(lines) + "}\n"


if __name__ == "__main__":
    save_zoo(sys.argv[1])
    pathlib.Path(sys.argv[1], "models.config").write_text(models_config(pathlib.Path(sys.argv[1]).resolve()))
