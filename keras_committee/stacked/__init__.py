"""Training of several members as one JAX program: small members that leave most of a GPU idle one by one.

Needs the JAX backend of Keras and the extra `jax`; imports no TensorFlow.
"""

from keras_committee.stacked.program import StackedProgram, StackedState
from keras_committee.stacked.train import StackedOptions, train_stacked

__all__ = ["StackedOptions", "StackedProgram", "StackedState", "train_stacked"]
