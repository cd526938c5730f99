"""TensorFlow, imported on first use: data in memory can be described and read where TensorFlow is not installed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf
else:

    class _LazyModule:
        def __getattr__(self, name: str) -> Any:
            import tensorflow

            return getattr(tensorflow, name)

    tf = _LazyModule()

__all__ = ["tf"]
