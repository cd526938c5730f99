"""Which layers does a committee need beyond Keras' own?"""

from keras_committee.layers.confidence import CONFIDENCES, confidence
from keras_committee.layers.graph import TensorFlowGraph
from keras_committee.layers.heads import (
    ArithmeticMean,
    GeometricMean,
    MajorityVote,
    WeightedGeometricMean,
    head_name,
    head_named,
    head_of,
)
from keras_committee.layers.normalization import BatchNormalization
from keras_committee.layers.resize import Resize
from keras_committee.layers.stochastic_depth import StochasticDepth
from keras_committee.layers.survival import (
    blocks,
    expected_depth,
    keras_efficientnet,
    linear_decay,
    model_garden_resnet,
    ramp,
    set_survival,
    timm_linear,
    uniform,
)

__all__ = [
    "CONFIDENCES",
    "ArithmeticMean",
    "BatchNormalization",
    "GeometricMean",
    "MajorityVote",
    "Resize",
    "StochasticDepth",
    "TensorFlowGraph",
    "WeightedGeometricMean",
    "blocks",
    "confidence",
    "expected_depth",
    "head_name",
    "head_named",
    "head_of",
    "keras_efficientnet",
    "linear_decay",
    "model_garden_resnet",
    "ramp",
    "set_survival",
    "timm_linear",
    "uniform",
]
