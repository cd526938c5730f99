"""Models that can be members, and models made of members."""

from keras_committee.models.cascade import Cascade
from keras_committee.models.committee import Ensemble
from keras_committee.models.efficientnet import efficientnet, efficientnet_resolution
from keras_committee.models.external import INPUT_SCALINGS, InputNormalization, from_keras_file, wrap_model
from keras_committee.models.folding import fold_stochastic_depth
from keras_committee.models.predict import log_probabilities
from keras_committee.models.pretrained import (
    from_keras_cv,
    from_keras_efficientnet,
    pretrained,
    pretrained_efficientnet,
)
from keras_committee.models.resnet import resnet, resnet_imagenet
from keras_committee.models.resolution import with_input_size
from keras_committee.models.sampling import mc_stochastic_depth
from keras_committee.models.saved_model import from_saved_model
from keras_committee.models.speed_net import speed_net
from keras_committee.models.views import with_views
from keras_committee.models.wide_resnet import wide_resnet

__all__ = [
    "INPUT_SCALINGS",
    "Cascade",
    "Ensemble",
    "InputNormalization",
    "efficientnet",
    "efficientnet_resolution",
    "fold_stochastic_depth",
    "from_keras_cv",
    "from_keras_efficientnet",
    "from_keras_file",
    "from_saved_model",
    "log_probabilities",
    "mc_stochastic_depth",
    "pretrained",
    "pretrained_efficientnet",
    "resnet",
    "resnet_imagenet",
    "speed_net",
    "wide_resnet",
    "with_input_size",
    "with_views",
    "wrap_model",
]
