"""Prometheus metrics under the names of TF Serving."""

import bisect
import itertools
import threading

_REQUEST_COUNT = ":tensorflow:serving:request_count"
_LATENCY_LABELS = {
    "request_latency": ("model_name", "API", "entrypoint"),
    "runtime_latency": ("model_name", "API", "runtime"),
}
# Microseconds: scale 10, power 1.8, 33 buckets (servables/tensorflow/util.cc).
_BUCKET_BOUNDS = tuple(itertools.accumulate(itertools.repeat(1.8, 32), float.__mul__, initial=10.0))

Labels = tuple[str, ...]


class Metrics:
    """Counts and latencies of requests. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Labels, int] = {}
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
            self._histograms.setdefault((name, labels), _Histogram()).add(seconds * 1e6)

    def render(self) -> str:
        """Return the metrics in Prometheus's text format."""
        with self._lock:
            lines = [f"# TYPE {_REQUEST_COUNT} counter"]
            for labels, count in sorted(self._counts.items()):
                lines.append(f"{_REQUEST_COUNT}{{{_format_labels(('model_name', 'status'), labels)}}} {count}")
            for name, keys in _LATENCY_LABELS.items():
                lines += self._latency_lines(name, keys)
        return "\n".join(lines) + "\n"

    def _latency_lines(self, name: str, keys: Labels) -> list[str]:
        lines = [f"# TYPE :tensorflow:serving:{name} histogram"]
        for (metric_name, labels), histogram in sorted(self._histograms.items(), key=lambda item: item[0]):
            if metric_name == name:
                lines += histogram.lines(f":tensorflow:serving:{name}", _format_labels(keys, labels))
        return lines


class _Histogram:
    def __init__(self) -> None:
        self._counts = [0] * (len(_BUCKET_BOUNDS) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_right(_BUCKET_BOUNDS, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> list[str]:
        bounds = [f"{bound:g}" for bound in _BUCKET_BOUNDS] + ["+Inf"]
        counts = list(itertools.accumulate(self._counts))
        buckets = [f'{name}_bucket{{{labels},le="{le}"}} {n}' for le, n in zip(bounds, counts, strict=True)]
        return [*buckets, f"{name}_sum{{{labels}}} {self._sum:g}", f"{name}_count{{{labels}}} {counts[-1]}"]


def _format_labels(keys: Labels, values: Labels) -> str:
    return ",".join(f'{key}="{_escape(value)}"' for key, value in zip(keys, values, strict=True))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
