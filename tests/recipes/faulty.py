"""The tiny recipe, with members that are killed, hang, fail or diverge, once or always."""

import dataclasses
import os
import pathlib
import signal
import time

import keras

from keras_committee import Recipe, data
from keras_committee.data.augment import PadCropFlip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faulty(PadCropFlip):
    """A random crop that calls `fault` at the start of the third epoch."""

    fault: object = None
    passes: list = dataclasses.field(default_factory=list)

    def draw(self, rng, examples):
        self.passes.append(examples)
        if len(self.passes) == 4:  # one further call per member determines the shape of the draws
            self.fault()
        return super().draw(rng, examples)


class Faults:
    """The faults of the members.

    Args:
        marks: Folder that records faults, so that each one happens once; the empty string to repeat them.
        **members: For each kind of fault, the indices of the members that have it, such as "0,2".
    """

    def __init__(self, marks, **members):
        self._marks, self._members = marks, members
        self.member = None

    def happens(self, kind):
        if str(self.member) not in self._members[kind].split(","):
            return False
        mark = pathlib.Path(self._marks, f"{kind}-{self.member}")
        if self._marks and mark.exists():
            return False
        if self._marks:
            mark.touch()
        return True

    def within_training(self):
        if self.happens("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.happens("hanging"):
            time.sleep(10_000)


def recipe(
    members=3,
    epochs=3,
    snapshots=1,
    swa_epoch_start=0.0,
    seed=7,
    killed="",
    hanging="",
    failing="",
    diverging="",
    marks="",
    precision="float32",
):
    faults = Faults(marks, killed=killed, hanging=hanging, failing=failing, diverging=diverging)

    def member(index):
        faults.member = index
        if faults.happens("failing"):
            raise SystemError("a bug of the recipe")
        image = keras.Input((32, 32, 3), name="image")
        x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(image)
        x = keras.layers.Flatten()(keras.layers.AveragePooling2D(4)(x))
        x = keras.layers.Dropout(0.2)(x)
        return keras.Model(image, keras.layers.Dense(10, dtype="float32")(x), name=f"linear_{index}")

    return Recipe(
        data=data.digits(64, augment=Faulty(pad=1, flip=False, fault=faults.within_training)),
        member=member,
        members=members,
        snapshots=snapshots,
        swa_epoch_start=swa_epoch_start or None,
        optimizer=lambda steps: keras.optimizers.SGD(1e38 if faults.happens("diverging") else 0.05, momentum=0.9),
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seed=seed,
        precision=precision,
    )
