"""Export a committee as a SavedModel for TensorFlow Serving, verified before it is published."""
