"""Which layers does a committee need beyond Keras' own?"""

from keras_committee.layers.heads import (
    ArithmeticMean,
    GeometricMean,
    MajorityVote,
    WeightedGeometricMean,
    head_name,
    head_named,
)
from keras_committee.layers.normalization import BatchNormalization

__all__ = [
    "ArithmeticMean",
    "BatchNormalization",
    "GeometricMean",
    "MajorityVote",
    "WeightedGeometricMean",
    "head_name",
    "head_named",
]
