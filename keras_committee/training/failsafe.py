"""Reports that may fail without stopping training: logs, TensorBoard's files, profiles, pictures and progress bars."""

import contextlib
import time
from collections.abc import Callable, Iterator

from keras_committee.errors import ResourceError

_SECONDS_BETWEEN_WARNINGS = 60.0


class Failsafe:
    """Turns every error of a report into a warning: training continues without the report.

    A full disk may have room again, so a `ResourceError` is repeated, at most once a minute. Any other error comes from
    the report itself: it is printed once for each kind of report.

    Args:
        warn: Function of the text of a warning.
    """

    def __init__(self, warn: Callable[[str], None]):
        self._warn = warn
        self._last_warning = -_SECONDS_BETWEEN_WARNINGS
        self._failed: set[str] = set()  # kinds of reports

    @contextlib.contextmanager
    def __call__(self, report: str) -> Iterator[None]:
        """Wrap the work for a report.

        Args:
            report: Its kind, the subject of the warning, in the singular.
        """
        try:
            yield
        except ResourceError as error:
            if time.monotonic() - self._last_warning >= _SECONDS_BETWEEN_WARNINGS:
                self._last_warning = time.monotonic()
                self._warn(f"warning: {error}\n  Training continues; its logs have gaps.")
        except Exception as error:
            if report not in self._failed:
                self._failed.add(report)
                self._warn(
                    f"warning: {report} failed: {type(error).__name__}: {error}\n"
                    "  Training continues without it. This warning is not repeated."
                )
