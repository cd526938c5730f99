"""Drift: whether the outputs that a model serves are distributed as those for the images that it was validated on.

    monitor = DriftMonitor.from_version("saved_models/digits/1")
    monitor.add(client.predict(images))
    monitor.compare()["confidence"]["psi"]

The reference is the key `reference` of `committee.json`. The local server publishes the comparison for Prometheus;
`DriftMonitor.render` does so for the answers of any other server.
"""

import collections
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from keras_committee.errors import DataError
from keras_committee.files import read_problem, read_record
from keras_committee.tfserving.tf_protocol import DEFAULT_SIGNATURE
from keras_committee.tfserving.versions import MANIFEST_FILE

MIN_IMAGES = 100  # of fewer answers nothing is published

_MAX_VALUES = 1000  # of a number in the reference; of more, evenly spaced order statistics are kept
_MAX_BINS = 10  # of a number
_MAX_GROUPS = 20  # of categories: of many classes, neighbors are counted together
_WINDOW = 5000  # answers


def reference_distribution(
    outputs: Mapping[str, np.ndarray], numbers: Iterable[str], categories: Mapping[str, bool]
) -> dict[str, Any]:
    """Return the distribution of outputs as a JSON document.

    Args:
        outputs: Arrays `(examples,)` by name.
        numbers: Names of the outputs that are numbers; those that `outputs` has count.
        categories: Names of the outputs that are integers of a few values, and whether these have an order.

    Returns:
        `examples`, and `outputs`: for each number sorted `values`, at most 1,000; for each category `shares` by value
        and `is_ordered`.
    """
    document = {}
    for name in numbers:
        if name in outputs:
            values = np.sort(np.asarray(outputs[name], np.float64))
            kept = np.linspace(0, len(values) - 1, min(len(values), _MAX_VALUES)).round().astype(int)
            document[name] = {"values": values[kept].tolist()}
    for name, is_ordered in categories.items():
        if name in outputs:
            values, counts = np.unique(outputs[name], return_counts=True)
            shares = dict(zip(map(str, values.tolist()), (counts / counts.sum()).tolist(), strict=True))
            document[name] = {"shares": shares, "is_ordered": is_ordered}
    return {"examples": len(next(iter(outputs.values()))), "outputs": document}


def population_stability_index(reference: np.ndarray, counts: np.ndarray, examples: int) -> float:
    """Return the population stability index of two histograms: `sum (p - q) ln(p / q)`.

    Below 0.1 the distributions are usually called similar, above 0.25 different. Half an example is added to each bin,
    so that an empty one has a logarithm.

    Args:
        reference: Shares of the reference, floats `(bins,)` of sum 1.
        counts: Number of observed values in each bin.
        examples: Number of examples behind the reference.

    Source: Siddiqi 2006, Credit Risk Scorecards; its distribution: Yurdakul & Naranjo 2020, Journal of Risk Model
    Validation 14(4).
    """
    bins = len(reference)
    expected = (reference * examples + 0.5) / (examples + 0.5 * bins)
    observed = (counts + 0.5) / (counts.sum() + 0.5 * bins)
    return float(np.sum((observed - expected) * np.log(observed / expected)))


def ks_p_value(distance: float, first: int, second: int) -> float:
    """Return the p-value of a two-sample Kolmogorov-Smirnov distance between `first` and `second` examples.

    It is asymptotic, and too large rather than too small for values with ties.
    """
    from scipy.stats import kstwo

    return float(np.clip(kstwo.sf(distance, np.round(first * second / (first + second))), 0, 1))


class DriftMonitor:
    """Compares the latest answers with a reference. Threads may share a monitor.

    Args:
        reference: A document of `reference_distribution`; with the key `signatures`, only answers of these count.
        window: Number of latest answers that are compared.
    """

    def __init__(self, reference: Mapping[str, Any], window: int = _WINDOW):
        self._reference = reference
        self._lock = threading.Lock()
        self._latest = {name: collections.deque(maxlen=window) for name in reference["outputs"]}

    @classmethod
    def from_version(cls, folder: str | Path, window: int = _WINDOW) -> Self:
        """Return a monitor with the reference of an exported version.

        Raises:
            DataError: If the version has no reference, or its manifest cannot be read.
        """
        reference = read_reference(Path(folder))
        if reference is None:
            raise DataError(
                f"{Path(folder, MANIFEST_FILE)} has no reference distribution.\n"
                "  Export a selection: keras-committee export RUN --selection FILE"
            )
        return cls(reference, window)

    def add(self, outputs: Mapping[str, np.ndarray], signature: str = "") -> None:
        """Add the answers to a request; rows that are not `valid`, and outputs without a reference, do not count.

        Args:
            outputs: Arrays by output name, as `Client.predict` returns them.
            signature: Name of the signature; empty if it is known to be one of the reference.
        """
        signatures = self._reference.get("signatures")
        if signature and signatures is not None and signature not in signatures:
            return
        valid = outputs.get("valid", slice(None))
        with self._lock:
            for name in self._latest:
                if name in outputs:
                    self._latest[name].extend(np.asarray(outputs[name])[valid].tolist())

    def compare(self) -> dict[str, dict[str, float]]:
        """Return for each output with answers `images`, `psi`, and `ks_p_value` where its values have an order."""
        with self._lock:
            latest = {name: np.array(values) for name, values in self._latest.items() if values}
        examples, outputs = self._reference["examples"], self._reference["outputs"]
        return {name: _compare(outputs[name], values, examples) for name, values in latest.items()}

    def render(self, labels: Mapping[str, str]) -> list[str]:
        """Return the comparison as samples in Prometheus's text format, without their types; none below 100 answers.

        Args:
            labels: Labels of each sample, such as the model and its version.
        """
        lines = []
        for name, result in self.compare().items():
            text = ",".join(f'{key}="{value}"' for key, value in {**labels, "output": name}.items())
            if result["images"] >= MIN_IMAGES:
                lines += [f"keras_committee_drift_{metric}{{{text}}} {value:.6g}" for metric, value in result.items()]
        return lines


class MonitoredSession:
    """A session whose answers a `DriftMonitor` receives. Its attributes are those of the session.

    Args:
        session: The session.
        monitor: The monitor.
    """

    def __init__(self, session: Any, monitor: DriftMonitor):
        self._session, self.monitor = session, monitor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, signature: str, *arguments: Any, **options: Any) -> dict[str, np.ndarray]:
        outputs = self._session.run(signature, *arguments, **options)
        self.monitor.add(outputs, signature or DEFAULT_SIGNATURE)
        return outputs


def read_reference(folder: Path) -> dict[str, Any] | None:
    """Return the reference of the version in `folder`; None if it has none or was exported by another program.

    Raises:
        DataError: If its manifest cannot be read.
    """
    file = folder / MANIFEST_FILE
    try:
        document = read_record(file, may_be_edited=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} is damaged: {read_problem(error)}.\n  Export again: keras-committee export RUN"
        ) from error
    reference = document.get("reference") if isinstance(document, dict) else None
    return reference if isinstance(reference, dict) and "outputs" in reference else None


def render_drift(monitors: Iterable[tuple[str, int, DriftMonitor]]) -> str:
    """Return the metrics of the monitors of models and versions in Prometheus's text format; "" without any."""
    lines = [
        line
        for model, version, monitor in monitors
        for line in monitor.render({"model": model, "version": str(version)})
    ]
    if not lines:
        return ""
    text = []
    for metric in ("images", "psi", "ks_p_value"):
        name = f"keras_committee_drift_{metric}"
        text += [f"# TYPE {name} gauge", *(line for line in lines if line.startswith(f"{name}{{"))]
    return "\n".join(text) + "\n"


def _compare(reference: Mapping[str, Any], values: np.ndarray, examples: int) -> dict[str, float]:
    if "values" in reference:
        return _compare_numbers(np.array(reference["values"]), values, examples)
    return _compare_categories(reference["shares"], values, examples, reference["is_ordered"])


def _compare_numbers(expected: np.ndarray, values: np.ndarray, examples: int) -> dict[str, float]:
    edges = np.unique(np.quantile(expected, np.arange(1, _MAX_BINS) / _MAX_BINS))
    counts, shares = (
        np.bincount(np.searchsorted(edges, each, side="left"), minlength=len(edges) + 1) for each in (values, expected)
    )
    points = np.concatenate([expected, values])
    below = [np.searchsorted(np.sort(each), points, side="right") / len(each) for each in (values, expected)]
    distance = float(np.abs(below[0] - below[1]).max())
    return {
        "images": len(values),
        "psi": population_stability_index(shares / len(expected), counts, examples),
        "ks_p_value": ks_p_value(distance, len(values), examples),
    }


def _compare_categories(
    shares: Mapping[str, float], values: np.ndarray, examples: int, is_ordered: bool
) -> dict[str, float]:
    known = sorted({*map(int, shares), *values.tolist()})
    expected = np.array([shares.get(str(value), 0.0) for value in known])
    counts = np.bincount(np.searchsorted(known, values), minlength=len(known))
    result: dict[str, float] = {"images": len(values)}
    groups = _groups(expected)
    expected_groups, count_groups = (np.bincount(groups, weights=each) for each in (expected, counts))
    result["psi"] = population_stability_index(expected_groups, count_groups, examples)
    if is_ordered:
        distance = float(np.abs(np.cumsum(counts / counts.sum()) - np.cumsum(expected)).max())
        result["ks_p_value"] = ks_p_value(distance, len(values), examples)
    return result


def _groups(shares: np.ndarray) -> np.ndarray:
    """Return the group of each category: each its own, or of many categories at most 20 of about equal shares."""
    if len(shares) <= _MAX_GROUPS:
        return np.arange(len(shares))
    middle = np.cumsum(shares) - shares / 2
    return np.unique(np.minimum((middle * _MAX_GROUPS).astype(int), _MAX_GROUPS - 1), return_inverse=True)[1]
