"""Which models can be members, and how do members become one model?"""

from keras_committee.models.cascade import Cascade
from keras_committee.models.committee import Ensemble
from keras_committee.models.efficientnet import efficientnet, efficientnet_resolution
from keras_committee.models.external import SCALES, Normalization, as_member, from_keras_file
from keras_committee.models.folding import fold
from keras_committee.models.predict import log_probabilities
from keras_committee.models.pretrained import (
    from_application,
    from_keras_cv,
    from_keras_efficientnet,
    pretrained_efficientnet,
)
from keras_committee.models.resnet import resnet, resnet_imagenet
from keras_committee.models.resolution import at_resolution
from keras_committee.models.sampling import sample_subnetworks
from keras_committee.models.saved_model import from_saved_model
from keras_committee.models.wide_resnet import wide_resnet

__all__ = [
    "SCALES",
    "Cascade",
    "Ensemble",
    "Normalization",
    "as_member",
    "at_resolution",
    "efficientnet",
    "efficientnet_resolution",
    "fold",
    "from_application",
    "from_keras_cv",
    "from_keras_efficientnet",
    "from_keras_file",
    "from_saved_model",
    "log_probabilities",
    "pretrained_efficientnet",
    "resnet",
    "resnet_imagenet",
    "sample_subnetworks",
    "wide_resnet",
]
