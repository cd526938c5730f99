"""Dtype policies of the networks."""

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def dtype_policy_scope(name: str) -> Iterator[None]:
    """Create the layers inside the block under the dtype policy `name`, such as `"mixed_bfloat16"`."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
