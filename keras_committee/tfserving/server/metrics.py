"""Prometheus metrics under the names of TF Serving."""

import bisect
import itertools
import threading

_REQUEST_COUNT = ":tensorflow:serving:request_count"
_EXAMPLE_COUNT_TOTAL = ":tensorflow:serving:request_example_count_total"

Labels = tuple[str, ...]


def _exponential_bounds(scale: float, factor: float, count: int) -> tuple[float, ...]:
    return tuple(itertools.accumulate(itertools.repeat(factor, count - 1), float.__mul__, initial=scale))


# Labels and bounds of the buckets (servables/tensorflow/util.cc); latencies are in microseconds.
_LATENCY_BOUNDS = _exponential_bounds(10.0, 1.8, 33)
_HISTOGRAMS = {
    "request_latency": (("model_name", "API", "entrypoint"), _LATENCY_BOUNDS),
    "runtime_latency": (("model_name", "API", "runtime"), _LATENCY_BOUNDS),
    "request_example_counts": (("model",), _exponential_bounds(1.0, 2.0, 15)),
}


class Metrics:
    """Counts and latencies of requests. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Labels, int] = {}
        self._example_counts: dict[Labels, int] = {}
        self._histograms: dict[tuple[str, Labels], _Histogram] = {}

    def count_request(self, model: str, status: str) -> None:
        """Count a request for `model` that ended with the gRPC code `status`."""
        with self._lock:
            self._counts[model, status] = self._counts.get((model, status), 0) + 1

    def record_latency(self, name: str, labels: Labels, seconds: float) -> None:
        """Record a duration.

        Args:
            name: `"request_latency"` or `"runtime_latency"`.
            labels: (model, API, entrypoint), or (model, API, runtime).
            seconds: The duration.
        """
        with self._lock:
            self._add_to_histogram(name, labels, seconds * 1e6)

    def record_examples(self, model: str, count: int) -> None:
        """Record the number of examples of a request. TF Serving counts those of MultiInference only."""
        with self._lock:
            self._example_counts[model,] = self._example_counts.get((model,), 0) + count
            self._add_to_histogram("request_example_counts", (model,), count)

    def render(self) -> str:
        """Return the metrics in Prometheus's text format."""
        with self._lock:
            lines = _counter_lines(_REQUEST_COUNT, ("model_name", "status"), self._counts)
            lines += _counter_lines(_EXAMPLE_COUNT_TOTAL, ("model",), self._example_counts)
            for name, (keys, _) in _HISTOGRAMS.items():
                lines += self._histogram_lines(name, keys)
        return "\n".join(lines) + "\n"

    def _add_to_histogram(self, name: str, labels: Labels, value: float) -> None:
        if (name, labels) not in self._histograms:
            self._histograms[name, labels] = _Histogram(_HISTOGRAMS[name][1])
        self._histograms[name, labels].add(value)

    def _histogram_lines(self, name: str, keys: Labels) -> list[str]:
        lines = [f"# TYPE :tensorflow:serving:{name} histogram"]
        for (metric_name, labels), histogram in sorted(self._histograms.items(), key=lambda item: item[0]):
            if metric_name == name:
                lines += histogram.lines(f":tensorflow:serving:{name}", _format_labels(keys, labels))
        return lines


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_right(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> list[str]:
        bounds = [f"{bound:g}" for bound in self._bounds] + ["+Inf"]
        counts = list(itertools.accumulate(self._counts))
        buckets = [f'{name}_bucket{{{labels},le="{le}"}} {n}' for le, n in zip(bounds, counts, strict=True)]
        return [*buckets, f"{name}_sum{{{labels}}} {self._sum:g}", f"{name}_count{{{labels}}} {counts[-1]}"]


def _counter_lines(name: str, keys: Labels, counts: dict[Labels, int]) -> list[str]:
    samples = [f"{name}{{{_format_labels(keys, labels)}}} {count}" for labels, count in sorted(counts.items())]
    return [f"# TYPE {name} counter", *samples]


def _format_labels(keys: Labels, values: Labels) -> str:
    return ",".join(f'{key}="{_escape(value)}"' for key, value in zip(keys, values, strict=True))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
