"""What lies in the folder of one member of a run, and who owns it?"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from keras_committee.files import file_lock


@dataclasses.dataclass(frozen=True)
class MemberDir:
    """The files of one member of a run."""

    run: Path
    index: int

    @property
    def path(self) -> Path:
        return self.run / "members" / f"{self.index:02d}"

    @property
    def model(self) -> Path:
        """The trained model. Moved here whole as the very last act of training, so it marks a finished member."""
        return self.path / "model.keras"

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def state(self) -> Path:
        """The folder of the checkpoints of an unfinished member."""
        return self.path / "state"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Owns the member, whoever shares the run folder.

        Raises:
            InUseError: If another process owns it.
            ResourceError: If it cannot be written, or its file system has no locks.
        """
        with file_lock(self.path / "lock", f"member {self.index} of {self.run}"):
            yield

    def epoch_predictions(self, epoch: int) -> Path:
        """The file of the log probabilities on the validation split after `epoch`, for the committee so far."""
        return self.path / "validation" / f"{epoch:04d}.npy"

    @property
    def finished(self) -> bool:
        return self.model.exists()
