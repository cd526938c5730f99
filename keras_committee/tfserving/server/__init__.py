"""Local server with the interfaces of TensorFlow Serving."""
