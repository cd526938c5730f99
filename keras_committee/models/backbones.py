"""How does a backbone of keras-cv, or any other that gives features, become a member?"""

import keras

from keras_committee.errors import VerificationError
from keras_committee.models.foreign import as_member
from keras_committee.models.scales import Scale


def from_keras_cv(
    backbone: keras.Model,
    classes: int,
    *,
    scale: Scale | None = None,
    image_size: tuple[int, int] | None = None,
    dropout: float = 0.0,
    name: str | None = None,
) -> keras.Model:
    """A keras-cv backbone with the mean over the positions and a dense layer of random weights on top.

    Args:
        backbone: Such as `keras_cv.models.ResNetV2Backbone(...)`: of images to features `(batch, rows, columns,
            channels)`. The named ones, such as `ResNet18V2Backbone()`, ask Kaggle for their shape.
        classes: Number of logits.
        scale: What pixels the backbone was trained on, as `as_member` takes it. None asks it for its
            `include_rescaling`: with it, it takes raw pixels, and without it pixels in 0..1.
        image_size: `(height, width)`, where the backbone takes images of any size.
        dropout: Share of the features that are dropped in training.
        name: Name of the member; that of the backbone where None.

    Raises:
        VerificationError: If it is no backbone, or does not say whether it rescales and no `scale` is given.
        ValueError: If the scale is none.
    """
    features = (getattr(backbone, "outputs", None) or [None])[0]
    if features is None or len(backbone.outputs) != 1 or len(features.shape) != 4:
        raise VerificationError(
            f"{getattr(backbone, 'name', backbone)!r} is no backbone of images to one (batch, rows, columns, channels)."
        )
    x = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    x = keras.layers.Dropout(dropout, name="dropout")(x) if dropout else x
    logits = keras.layers.Dense(classes, dtype="float32", name="logits")(x)
    network = keras.Model(backbone.inputs[0], logits, name=name or backbone.name)
    return as_member(network, scale=_scale(backbone) if scale is None else scale, image_size=image_size)


def _scale(backbone):
    rescales = getattr(backbone, "include_rescaling", None)
    if rescales is None:
        raise VerificationError(
            f'{backbone.name!r} does not say whether it rescales pixels. Name its scale: scale="0..1", or another.'
        )
    return "0..255" if rescales else "0..1"
