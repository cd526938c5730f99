"""Keras layers of a committee: heads, stochastic depth, fast batch normalization, patch whitening and resizing."""

from keras_committee.layers.activations import QuickGELU
from keras_committee.layers.confidence import CONFIDENCE_MEASURES, confidence
from keras_committee.layers.graph import TensorFlowGraph
from keras_committee.layers.heads import (
    ArithmeticMean,
    GeometricMean,
    MajorityVote,
    WeightedGeometricMean,
    get_head,
    head_name,
    subset_head,
)
from keras_committee.layers.initializers import PartialIdentity
from keras_committee.layers.normalization import BatchNormalization
from keras_committee.layers.resize import Resize
from keras_committee.layers.stochastic_depth import StochasticDepth
from keras_committee.layers.survival import (
    constant_survival,
    expected_depth,
    linear_decay,
    linear_schedule,
    set_survival,
    stochastic_depth_blocks,
    survival_keras_efficientnet,
    survival_model_garden_resnet,
    survival_timm_linear,
)
from keras_committee.layers.whitening import PatchWhitening

__all__ = [
    "CONFIDENCE_MEASURES",
    "ArithmeticMean",
    "BatchNormalization",
    "GeometricMean",
    "MajorityVote",
    "PartialIdentity",
    "PatchWhitening",
    "QuickGELU",
    "Resize",
    "StochasticDepth",
    "TensorFlowGraph",
    "WeightedGeometricMean",
    "confidence",
    "constant_survival",
    "expected_depth",
    "get_head",
    "head_name",
    "linear_decay",
    "linear_schedule",
    "set_survival",
    "stochastic_depth_blocks",
    "subset_head",
    "survival_keras_efficientnet",
    "survival_model_garden_resnet",
    "survival_timm_linear",
]
