"""The folder of one member of a run."""

import contextlib
import dataclasses
import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_committee.errors import RunError
from keras_committee.files import (
    checked_line,
    file_lock,
    parse_record,
    read_checked,
    read_checked_lines,
    read_problem,
    write_checked,
    write_file,
)

if TYPE_CHECKING:
    import numpy as np

_DATA_INFO_ENTRY = "keras_committee.json"  # of the archive `model.keras`; Keras ignores it
_DAMAGED_ARCHIVE = (OSError, ValueError, RuntimeError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What the answers of a member rest on besides its network: the names of its classes, and the images it takes.

    It is an entry of `model.keras`, so that it is never separated from the weights and is covered by every hash of that
    file. The entry has a checksum.

    Attributes:
        classes: Names of the classes, in label order.
        transform: Fields of the `ImageTransform` of the data: from any image to the member's input.
    """

    classes: tuple[str, ...]
    transform: dict[str, Any]

    def add_to(self, model_file: Path) -> None:
        """Add the entry to a `.keras` file. Raises OSError."""
        with zipfile.ZipFile(model_file, "a") as archive:
            archive.writestr(_DATA_INFO_ENTRY, checked_line(dataclasses.asdict(self)))


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

    def data_info(self) -> DataInfo | None:
        """Return the description of the data that the finished member was trained on; None if its file has none.

        Raises:
            RunError: If the file is damaged.
        """
        return read_data_info(self.model)

    @property
    def history(self) -> Path:
        """The scores of each epoch, one JSON object with its checksum per line; see `read_history`."""
        return self.path / "history.jsonl"

    def read_history(self) -> list[dict[str, Any]]:
        """Return one row per finished epoch; none without a history. Raises RunError if the file is damaged."""
        try:
            return read_checked_lines(self.history.read_bytes().splitlines()) if self.history.exists() else []
        except (OSError, ValueError) as error:
            raise _damaged_log_error(self.history, error) from error

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the history by one row per finished epoch. Raises ResourceError."""
        write_file(self.history, b"".join(map(checked_line, rows)))

    @property
    def tensorboard(self) -> Path:
        """The folder of the TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def state(self) -> Path:
        """The folder of the checkpoints of an unfinished member."""
        return self.path / "state"

    def epoch_predictions(self, epoch: int) -> Path:
        """Return the file of the validation log-probabilities after `epoch`; see `read_epoch_predictions`."""
        return self.path / "validation" / f"{epoch:04d}.npy"

    def read_epoch_predictions(self, epoch: int) -> "np.ndarray":
        """Return the validation log-probabilities after `epoch`, float32 `(examples, classes)`. Raises RunError."""
        import numpy as np

        file = self.epoch_predictions(epoch)
        try:
            return np.load(io.BytesIO(read_checked(file)), allow_pickle=False).astype(np.float32)
        except (OSError, ValueError) as error:
            raise _damaged_log_error(file, error) from error

    def write_epoch_predictions(self, epoch: int, log_probs: "np.ndarray") -> None:
        """Write the validation log-probabilities after `epoch`, `(examples, classes)`. Raises ResourceError."""
        import numpy as np

        content = io.BytesIO()
        # In half precision two hundred epochs of 5,000 examples and 10 classes stay at 20 MB a member.
        np.save(content, np.maximum(log_probs, np.finfo(np.float16).min).astype(np.float16))
        write_checked(self.epoch_predictions(epoch), content.getvalue())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the exclusive lock of the member, whether or not the run folder is shared.

        Raises:
            InUseError: If another process holds it.
            ResourceError: If the lock file cannot be written, or its file system does not support locks.
        """
        with file_lock(self.path / "lock", f"member {self.index} of {self.run}"):
            yield


def read_data_info(file: Path) -> DataInfo | None:
    """Return the description of the data in a `.keras` file; None if it has none.

    Raises:
        RunError: If the file is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if _DATA_INFO_ENTRY not in archive.namelist():
                return None
            fields = parse_record(archive.read(_DATA_INFO_ENTRY))
        return DataInfo(classes=tuple(fields["classes"]), transform=fields["transform"])
    except (*_DAMAGED_ARCHIVE, KeyError) as error:
        raise damaged_model_error(file, error) from error


def damaged_model_error(file: Path, error: Exception) -> RunError:
    """Return the error about the file of a trained member that cannot be read."""
    return RunError(
        f"{file} cannot be loaded: {error}\n  Delete it, then run `keras-committee train` again to retrain this member."
    )


def _damaged_log_error(file: Path, error: Exception) -> RunError:
    return RunError(
        f"{file} is damaged: {read_problem(error)}.\n  Only reports use it: move it away to go on without it."
    )
