"""What does TensorBoard show of the committee so far?"""

import time

import keras
import numpy as np

from keras_committee import metrics
from keras_committee.data import Splits
from keras_committee.figures.curves import reliability, reliability_panel
from keras_committee.figures.matrices import MOST_NAMES, square
from keras_committee.figures.style import Picture
from keras_committee.layers import GeometricMean, head_of
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.summaries import knobs_summary, picture_summary
from keras_committee.training.logs import Events

_KNOBS = ".knobs"  # how the name of the file ends that holds them
_TIMES = 5  # in a training that there are pictures: those of ten classes take 0.7 s of a core
_SECONDS_BEFORE = 10.0  # a shorter training is a trial, and has none


class Board:
    """The committee of the members that have ended an epoch, as TensorBoard shows it: a run for each of its sizes.

    `committee_of_3` at epoch 7 is what the three members that have ended epoch 7 say together of the validation split.
    The knobs stand beside the committee of all members, in TensorBoard's table of HParams. A few times in a training
    there are pictures of it, too: what it takes for what, and whether its confidence can be trusted.

    Args:
        run: The run folder.
        recipe: What is trained.
        splits: Its data.
    """

    def __init__(self, run: Run, recipe: Recipe, splits: Splits):
        self._run, self._recipe = run, recipe
        self._labels, self._classes = splits.validation.labels, splits.classes
        self._head = recipe.head or GeometricMean()
        self._events: dict[int, Events] = {}
        self._since, self._drawn = time.monotonic(), 0  # how often there were pictures

    def began(self) -> None:
        """Leave the knobs, in place of those of an earlier start. Raises ResourceError."""
        for folder in (self._run.path / "tensorboard").glob("committee_of_*"):
            Events(folder, _KNOBS).forget()
        knobs = Events(self._folder(self._recipe.members), _KNOBS)
        knobs.write(0, summaries=[knobs_summary(self._run.knobs(), self._run.path.resolve().name)])

    def epoch_ended(self, epoch: int) -> None:
        """Another member has ended `epoch`; its votes are on the disk. Raises ResourceError."""
        files = [self._run.member(index).epoch_votes(epoch) for index in range(self._recipe.members)]
        members = [index for index, file in enumerate(files) if file.exists()]
        if not members:  # the logs have gaps, as was told
            return
        so_far = np.stack([np.load(files[index], allow_pickle=False).astype(np.float32) for index in members], axis=1)
        said = keras.ops.convert_to_numpy(head_of(self._head, members)(so_far))
        events = self._events.setdefault(len(members), Events(self._folder(len(members))))
        scores = metrics.summary(said, self._labels)
        events.write(epoch, {f"validation_{name}": value for name, value in scores.items()})
        if len(members) == self._recipe.members and self._is_due(epoch):
            pictures = [picture_summary(each.name, each.png(100)) for each in self._pictures(so_far, said)]
            events.write(epoch, summaries=pictures)

    def _folder(self, size: int):
        return self._run.path / "tensorboard" / f"committee_of_{size}"

    def _is_due(self, epoch: int) -> bool:
        """Whether another fifth of the training has ended since there were pictures."""
        parts, before = epoch * _TIMES // self._recipe.epochs, self._drawn
        if time.monotonic() - self._since >= _SECONDS_BEFORE:
            self._drawn = max(parts, before)
        return self._drawn > before

    def _pictures(self, so_far: np.ndarray, said: np.ndarray) -> list[Picture]:
        """Of the members' log probabilities `(examples, members, classes)` and the committee's probabilities."""
        labels, classes = self._labels, self._classes
        panel = reliability_panel(f"committee of {so_far.shape[1]}", np.exp(so_far), said, labels)
        pictures = [Picture("reliability", "", lambda width: reliability([panel], width))]
        if len(classes) <= MOST_NAMES:
            matrix = metrics.confusion_matrix(said, labels)
            shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
            sides = ("true class", "answer of the committee")
            pictures.append(Picture("confusion", "", lambda width: square(shares, classes, sides, 0, width)))
        return pictures
