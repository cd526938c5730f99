"""In which precision does a network compute?"""

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def dtype_policy_scope(name: str) -> Iterator[None]:
    """Inside the block, layers are made under the dtype policy called so, such as `"mixed_bfloat16"`."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
