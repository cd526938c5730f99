"""A SavedModel with the signatures of an exported committee: three linear members, easily computed by hand."""

import pathlib

import numpy as np
import tensorflow as tf

SIZE, NAMES = 8, ("<b>red</b>", "green & co", "blue")
# Member m predicts the softmax of SHARPNESS[m] x the mean of each color in 0..1.
SHARPNESS = (4.0, 2.0, -1.0)


def expected(images):
    """Return the probabilities (batch, members, classes) for images (batch, SIZE, SIZE, 3) in 0..255."""
    logits = np.mean(images, (1, 2))[:, None, :] / 255 * np.array(SHARPNESS)[None, :, None]
    powers = np.exp(logits)
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


class TinyCommittee(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32, "image")])
    def predict_members(self, image):
        image = tf.ensure_shape(image, [None, SIZE, SIZE, 3])
        logits = tf.reduce_mean(image, (1, 2))[:, None, :] / 255 * tf.constant(SHARPNESS)[None, :, None]
        probabilities = tf.nn.softmax(logits)
        mean = tf.reduce_mean(probabilities, 1)
        best = tf.argmax(mean, 1, output_type=tf.int32)
        return {
            "probabilities": mean,
            "class_id": best,
            "label": tf.gather(tf.constant(NAMES), best),
            "confidence": tf.reduce_max(mean, 1),
            "mutual_information": tf.zeros_like(mean[:, 0]),
            "members_used": tf.fill(tf.shape(best), 2),
            "member_probabilities": probabilities,
        }

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32, "image")])
    def predict(self, image):
        return {name: value for name, value in self.predict_members(image).items() if name != "member_probabilities"}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def predict_members_bytes(self, image_bytes):
        valid = tf.reduce_any(tf.strings.substr(image_bytes, 0, 3)[:, None] == [b"\x89PN", b"\xff\xd8\xff"], 1)
        images = tf.map_fn(self._decoded, (image_bytes, valid), fn_output_signature=tf.float32)
        return {**self.predict_members(images), "valid": valid}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def predict_bytes(self, image_bytes):
        outputs = self.predict_members_bytes(image_bytes)
        return {name: value for name, value in outputs.items() if name != "member_probabilities"}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def classify(self, inputs):
        parsed = tf.io.parse_example(inputs, {"image/encoded": tf.io.FixedLenFeature([], tf.string)})
        scores = self.predict_bytes(parsed["image/encoded"])["probabilities"]
        return {"scores": scores, "classes": tf.tile([NAMES], [tf.size(inputs), 1])}

    def _decoded(self, pair):
        content, valid = pair
        return tf.cond(valid, lambda: self._image(content), lambda: tf.zeros([SIZE, SIZE, 3]))

    def _image(self, content):
        decoded = tf.io.decode_image(content, channels=3, expand_animations=False)
        return tf.image.resize(tf.ensure_shape(decoded, [None, None, 3]), [SIZE, SIZE], antialias=True)


def save_tiny_committee(base, version=1):
    """Write version `version` into the base path `base`."""
    module = TinyCommittee()
    signatures = {
        "serving_default": module.predict,
        "predict_members": module.predict_members,
        "predict_bytes": module.predict_bytes,
        "predict_members_bytes": module.predict_members_bytes,
        "classify": module.classify,
    }
    staging = pathlib.Path(base) / f".staging-{version}"
    tf.saved_model.save(module, str(staging), signatures=signatures)
    return staging.rename(staging.with_name(str(version)))
