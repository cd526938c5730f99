"""Write a member with a keras-cv backbone to `member.keras`, for `keras-committee import`.

Named backbones such as `ResNet18V2Backbone` would download their configuration from Kaggle.
"""

import keras_cv

from keras_committee import models

backbone = keras_cv.models.ResNetV2Backbone(
    stackwise_filters=[4, 8], stackwise_blocks=[2, 2], stackwise_strides=[1, 2], include_rescaling=True
)
models.from_keras_cv(backbone, classes=10, image_size=(32, 32)).save("member.keras")
