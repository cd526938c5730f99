"""The folder of one member of a run."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from keras_committee.files import file_lock


@dataclasses.dataclass(frozen=True)
class MemberDir:
    """Paths and lock of one member.

    Args:
        run: The run folder.
        index: Index of the member, from 0.
    """

    run: Path
    index: int

    @property
    def path(self) -> Path:
        """The member's folder."""
        return self.run / "members" / f"{self.index:02d}"

    @property
    def model(self) -> Path:
        """The trained model. It is renamed to this path as the last step of training and marks a finished member."""
        return self.path / "model.keras"

    @property
    def finished(self) -> bool:
        """Whether the member is fully trained."""
        return self.model.exists()

    @property
    def history(self) -> Path:
        """The scores of each epoch, one JSON object per line."""
        return self.path / "history.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of the TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def state(self) -> Path:
        """The folder of the checkpoints of an unfinished member."""
        return self.path / "state"

    def epoch_predictions(self, epoch: int) -> Path:
        """Return the file of the validation log-probabilities `(examples, classes)` after `epoch`."""
        return self.path / "validation" / f"{epoch:04d}.npy"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the exclusive lock of the member, whether or not the run folder is shared.

        Raises:
            InUseError: If another process holds it.
            ResourceError: If the lock file cannot be written, or its file system does not support locks.
        """
        with file_lock(self.path / "lock", f"member {self.index} of {self.run}"):
            yield
