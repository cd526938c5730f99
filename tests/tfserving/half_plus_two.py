"""A SavedModel that computes y = x / 2 + 2."""

import pathlib

import tensorflow as tf


class HalfPlusTwo(tf.Module):
    def __init__(self, half, two):
        super().__init__()
        self.half = tf.Variable(half, name="half")
        self.two = tf.Variable(two, name="two")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def predict(self, x):
        return {"y": self.half * x + self.two}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def regress(self, inputs):
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        return {"outputs": self.half * x + self.two}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def classify(self, inputs):
        scores = self.regress(inputs)["outputs"]
        return {"scores": tf.concat([scores, -scores], 1), "classes": tf.tile([["up", "down"]], [tf.size(inputs), 1])}


def save_half_plus_two(folder, version=123, half=0.5, two=2.0):
    """Write version `version` into the base path `folder` by a rename; return the version folder."""
    module = HalfPlusTwo(half, two)
    signatures = {"serving_default": module.predict, "regress": module.regress, "classify": module.classify}
    staging = pathlib.Path(folder) / f".staging-{version}"
    tf.saved_model.save(module, str(staging), signatures=signatures)
    return staging.rename(staging.with_name(str(version)))
