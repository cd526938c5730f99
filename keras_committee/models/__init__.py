"""Which models can be members, and how do members become one model?"""

from keras_committee.models.cascade import Cascade
from keras_committee.models.efficientnet import efficientnet, efficientnet_resolution
from keras_committee.models.ensemble import Ensemble
from keras_committee.models.folding import fold
from keras_committee.models.predict import log_probabilities
from keras_committee.models.pretrained import from_keras_efficientnet, pretrained_efficientnet
from keras_committee.models.resnet import resnet, resnet_imagenet
from keras_committee.models.resolution import at_resolution
from keras_committee.models.sampling import sample_subnetworks
from keras_committee.models.wide_resnet import wide_resnet

__all__ = [
    "Cascade",
    "Ensemble",
    "at_resolution",
    "efficientnet",
    "efficientnet_resolution",
    "fold",
    "from_keras_efficientnet",
    "log_probabilities",
    "pretrained_efficientnet",
    "resnet",
    "resnet_imagenet",
    "sample_subnetworks",
    "wide_resnet",
]
