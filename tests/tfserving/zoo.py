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
MODELS = ("half_plus_two", "kinds", "two", "image", "named", "examples")
LABELED = ("half_plus_two", "examples")  # the models whose version 123 has the label "lab"


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


def returning(inputs, outputs):
    """A signature that maps the `inputs`, names and dtypes of any shape, by the function `outputs`."""
    names = list(inputs)
    specs = [spec(dtype, name, None) for name, dtype in inputs.items()]
    return tf.function(lambda *values: outputs(dict(zip(names, values, strict=True))), input_signature=specs)


def constants(**outputs):
    return returning({"x": tf.float32}, lambda _: {name: tf.constant(value) for name, value in outputs.items()})


def same_tensors(**inputs):
    return returning(inputs, lambda values: {name: tf.identity(value) for name, value in values.items()})


def save_named(folder):
    """`named`: named tensors of several dtypes, and constants that TF Serving's tests convert to JSON."""
    words, contents = [[b"foo", b"bar"], [b"baz", b"bat"]], [[b"hello", b"world"], [b"tf", b"serving"]]
    cube = [[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 0], [1, 2]]]
    floats, doubles = [[1.0], [2.0]], tf.constant([8.0, 9.0], tf.float64)
    many = {"int_tensor": cube, "str_tensor": words, "float_tensor": floats, "double_scalar_tensor": doubles}
    signatures = {
        "serving_default": same_tensors(
            int_tensor=tf.int32, str_tensor=tf.string, float_tensor=tf.float32, dbl_tensor=tf.float64
        ),
        "two": same_tensors(int_tensor=tf.int32, str_tensor=tf.string),
        "columns": same_tensors(int_tensor=tf.int32, str_tensor=tf.string, bin_tensor=tf.string),
        "bytes": constants(str_tensor_bytes=contents),
        "many": constants(**many, str_tensor_bytes=contents),
        "complex": constants(tensor=tf.constant([1 + 2j], tf.complex64)),
        "scalar": constants(tensor=1),
        "uneven": constants(int_tensor=cube[0][:2], str_tensor=[[b"foo", b"bar", b"baz"]]),
        "empty_int": constants(int_tensor=tf.zeros([0, 2], tf.int32)),
        "empty_complex": constants(tensor=tf.zeros([0, 2], tf.complex64)),
        "empty_two": constants(str_tensor=tf.zeros([0, 1, 2], tf.string), float_tensor=tf.zeros([0, 3, 4])),
        "empty_one": constants(int_tensor=tf.zeros([0, 2], tf.int32), str_tensor=[[b"foo", b"bar"]]),
    }
    save(folder, signatures)


def of_examples(outputs, **features):
    """A signature that maps parsed tf.Examples to `outputs`. `features`: names and dtypes of lists of any length."""
    ragged = {name: tf.io.RaggedFeature(dtype) for name, dtype in features.items()}

    @tf.function(input_signature=[spec(tf.string, "inputs")])
    def run(inputs):
        return outputs({name: value.to_tensor() for name, value in tf.io.parse_example(inputs, ragged).items()})

    return run


def classification(outputs):
    return of_examples(lambda features: outputs(features["class"], features["score"]), **CLASS_FEATURES)


CLASS_FEATURES = {"class": tf.string, "score": tf.float32}


def example_signatures():
    def regression(outputs):
        return of_examples(lambda features: {"outputs": outputs(features["output"])}, output=tf.float32)

    def affine(outputs):
        return of_examples(lambda features: outputs(features["x"]), x=tf.float32)

    return {
        "serving_default": classification(lambda classes, scores: {"classes": classes, "scores": scores}),
        "output_plus_one": classification(lambda classes, scores: {"classes": classes, "scores": scores + 1}),
        "classes_only": classification(lambda classes, _: {"classes": classes}),
        "scores_only": classification(lambda _, scores: {"scores": scores}),
        "rank_3": classification(lambda classes, scores: {"classes": classes, "scores": scores[..., None]}),
        "one_class_row": classification(lambda classes, scores: {"classes": classes[:1], "scores": scores}),
        "float_classes": classification(lambda _, scores: {"classes": tf.identity(scores), "scores": scores}),
        "one_score_row": classification(lambda classes, scores: {"classes": classes, "scores": scores[:1]}),
        "string_scores": classification(lambda classes, _: {"classes": classes, "scores": tf.identity(classes)}),
        "three_scores": classification(
            lambda classes, scores: {"classes": classes, "scores": tf.concat([scores, scores[:, :1]], 1)}
        ),
        "failing": classification(lambda _, scores: {"scores": tf.ensure_shape(scores, [None, 77])}),
        "regress": regression(lambda output: output[:, 0]),
        "regress_plus_one": regression(lambda output: output + 1),
        "regress_rank_2": regression(lambda output: tf.tile(output, [1, 10])),
        "regress_two_values": regression(lambda output: tf.concat([output[:, 0], [0.5]], 0)),
        "regress_string": regression(lambda output: tf.as_string(output[:, 0])),
        "regress_x_to_y": affine(lambda x: {"outputs": x / 2 + 2}),
        "regress_x_to_y2": affine(lambda x: {"outputs": x / 2 + 3}),
        "classify_x_to_y": affine(lambda x: {"scores": x / 2 + 2}),
        "three_outputs": affine(lambda x: {"scores": x, "classes": tf.as_string(x), "more": x + 1}),
        "other_names": same("string"),
    }


class Counter(tf.Module):
    def __init__(self):
        super().__init__()
        self.counter = tf.Variable(0.0)

    @tf.function(input_signature=[])
    def get(self):
        return {"output": self.counter.read_value()}

    @tf.function(input_signature=[])
    def increment(self):
        return {"output": self.counter.assign_add(1.0)}

    @tf.function(input_signature=[])
    def reset(self):
        return {"output": self.counter.assign(0.0)}

    @tf.function(input_signature=[spec(tf.float32, "delta", [])])
    def increment_by(self, delta):
        return {"output": self.counter.assign_add(delta)}


def save_examples(folder):
    """`examples`, version 123: tf.Examples for Classify and Regress as in TF Serving's tests, and a counter."""
    module = Counter()
    counters = {
        "get_counter": module.get,
        "incr_counter": module.increment,
        "reset_counter": module.reset,
        "incr_counter_by": module.increment_by,
    }
    signatures = {**counters, **example_signatures()}
    tf.saved_model.save(module, str(pathlib.Path(folder) / "123"), signatures=signatures)


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
    """Write half_plus_two and examples (version 123), kinds, two, named and image (version 1) into `folder`."""
    folder = pathlib.Path(folder)
    save_half_plus_two(folder / "half_plus_two")
    save_kinds(folder / "kinds")
    save_two(folder / "two")
    save_image(folder / "image")
    save_named(folder / "named")
    save_examples(folder / "examples")


def models_config(folder):
    """Return a models.config for the models of `save_zoo`.

    It requires `--allow_version_labels_for_unavailable_models`.
    """
    lines = []
    for name in MODELS:
        label = 'version_labels { key: "lab" value: 123 }' if name in LABELED else ""
        lines.append(f'config {{ name: "{name}" base_path: "{folder}/{name}" model_platform: "tensorflow" {label} }}\n')
    return "model_config_list {\n" + "".join(lines) + "}\n"


if __name__ == "__main__":
    save_zoo(sys.argv[1])
    pathlib.Path(sys.argv[1], "models.config").write_text(models_config(pathlib.Path(sys.argv[1]).resolve()))
