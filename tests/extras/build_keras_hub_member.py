"""Write a member with a KerasHub classifier to `member.keras`, for `keras-committee import`.

The presets of KerasHub are downloaded; this one is written here.
"""

import keras_hub

from keras_committee import models

backbone = keras_hub.models.DenseNetBackbone([1, 1, 1], compression_ratio=0.5, growth_rate=4)
converter = keras_hub.layers.DenseNetImageConverter(image_size=(32, 32), scale=1 / 255)
preprocessor = keras_hub.models.DenseNetImageClassifierPreprocessor(image_converter=converter)
keras_hub.models.DenseNetImageClassifier(backbone, num_classes=5, preprocessor=preprocessor).save_to_preset("preset")
models.pretrained("preset", classes=10).save("member.keras")
