"""Folders for the temporary files of training processes, inside the run folder.

TensorFlow writes each function that it converts to a graph into a file `__autograph_generated_file*.py`, and removes
the files when Python ends. A process that is killed leaves them behind. So each process has a folder of its own, locked
as long as it lives, and the next training of the run removes the folders that nobody locks.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from keras_committee.errors import CommitteeError, InUseError
from keras_committee.files import file_lock
from keras_committee.run import Run

_LOCK_TIMEOUT = 30.0  # seconds, for other processes that create or remove folders


@contextlib.contextmanager
def own_temp_dir(run: Run) -> Iterator[None]:
    """Use a new folder in `run` for the temporary files of this process, and remove it at the end.

    Folders of processes that were killed are removed first. Where no folder can be created, such as on a full disk, the
    temporary folder stays the same.
    """
    root, previous = run.path / ".tmp", tempfile.tempdir
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(CommitteeError, OSError), _root_lock(run):
            _sweep(root)
            root.mkdir(exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=root))
            stack.callback(_remove, run, folder)
            stack.enter_context(_lock(folder))
            tempfile.tempdir = str(folder.resolve())
        try:
            yield
        finally:
            tempfile.tempdir = previous


def _sweep(root: Path) -> None:
    for folder in filter(Path.is_dir, root.glob("*")):
        with contextlib.suppress(InUseError), _lock(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _remove(run: Run, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(CommitteeError, OSError), _root_lock(run):
        folder.parent.rmdir()  # unless other processes have folders in it


def _root_lock(run: Run) -> contextlib.AbstractContextManager:
    return file_lock(run.path / ".tmp.lock", f"the temporary files of {run.path}", timeout=_LOCK_TIMEOUT)


def _lock(folder: Path) -> contextlib.AbstractContextManager:
    return file_lock(folder / "lock", str(folder))
