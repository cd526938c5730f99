"""Data sets, image transforms and augmentation.

A data function such as `cifar10(128, validation=5_000)` returns a description; nothing is read until
`DataConfig.load()`.
"""

from keras_committee.data.arrays import arrays, npz
from keras_committee.data.augment import Compose, PadCropFlip, compose, pad_crop_flip
from keras_committee.data.cifar import cifar10, cifar100
from keras_committee.data.dataset import DataConfig
from keras_committee.data.digits import digits
from keras_committee.data.huggingface import hf
from keras_committee.data.image_folder import image_folder
from keras_committee.data.mix import CutMix, Mixup, cutmix, mixup
from keras_committee.data.policies import (
    AugMix,
    AutoAugment,
    KerasRandAugment,
    RandAugment,
    TrivialAugment,
    augmix,
    autoaugment,
    randaugment,
    trivialaugment,
)
from keras_committee.data.preprocessing import ImageTransform, center_crop, decode_image, resize, resize_image
from keras_committee.data.random_crop import RandomResizedCrop, random_resized_crop
from keras_committee.data.random_erasing import RandomErasing, random_erasing
from keras_committee.data.splits import Split, Splits
from keras_committee.data.table import table
from keras_committee.data.tfds import tfds
from keras_committee.data.tfrecords import imagenet_records, tfrecords

__all__ = [
    "AugMix",
    "AutoAugment",
    "Compose",
    "CutMix",
    "DataConfig",
    "ImageTransform",
    "KerasRandAugment",
    "Mixup",
    "PadCropFlip",
    "RandAugment",
    "RandomErasing",
    "RandomResizedCrop",
    "Split",
    "Splits",
    "TrivialAugment",
    "arrays",
    "augmix",
    "autoaugment",
    "center_crop",
    "cifar10",
    "cifar100",
    "compose",
    "cutmix",
    "decode_image",
    "digits",
    "hf",
    "image_folder",
    "imagenet_records",
    "mixup",
    "npz",
    "pad_crop_flip",
    "randaugment",
    "random_erasing",
    "random_resized_crop",
    "resize",
    "resize_image",
    "table",
    "tfds",
    "tfrecords",
    "trivialaugment",
]
