"""Every metric of the service. The only importer of prometheus_client.

Label values come from closed sets, and all series exist from the start, so that `rate()` works on
the first hit.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter as CountOf
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

import psutil
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from models.safety import VERDICTS, Verdict
from service.interface import ModelInfo
from service.observer import ENGINE_FAULTS, REJECTIONS
from service.queues import JobClass

CONTENT_TYPE = CONTENT_TYPE_LATEST
Registry = CollectorRegistry
STAGES = ("parse", "queue", "compute", "respond")
OTHER = "other"
"""Label of paths that no route has: a scanner must not create series."""

STATUSES = ("200", "401", "404", "405", "413", "422", "429", "499", "500", "503", "504")
"""499: the caller left before the answer."""

_LATENCY_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_COUNTS = tuple(float(2**n) for n in range(14))
_PROBABILITIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.99, 1.0)
_UNCERTAINTIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """What happened, as series of one registry.

    Counters may be called from any thread.

    Args:
        registry: Receives all series; a fresh one each service.
        endpoints: Route templates, the closed set of the endpoint label.
    """

    def __init__(self, registry: Registry, endpoints: Iterable[str]) -> None:
        # A time stamp for every series would double each scrape.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry
        self._add_traffic([*endpoints, OTHER])
        self._add_batching()
        self._crash_probability = _BulkHistogram(
            "world_model_crash_probability",
            "Crash probability of the sequences of safety checks.",
            _PROBABILITIES,
        )
        self._uncertainty = _BulkHistogram(
            "world_model_uncertainty",
            "Disagreement of the ensemble over each answered sequence, in standard deviations "
            "of the training states.",
            _UNCERTAINTIES,
        )
        verdicts = Counter(
            "world_model_safety_verdicts",
            "Verdicts of safety checks.",
            ["verdict"],
            registry=registry,
        )
        self._verdicts = {v: verdicts.labels(v) for v in VERDICTS}
        for collector in (self._crash_probability, self._uncertainty, _Resident()):
            registry.register(collector)

    def _add_traffic(self, endpoints: Sequence[str]) -> None:
        requests = Counter(
            "world_model_requests",
            "Answered HTTP requests by route and status; 499 if the caller left.",
            ["endpoint", "code"],
            registry=self._registry,
        )
        seconds = Histogram(
            "world_model_request_seconds",
            "Time from the first to the last byte of a request's handling.",
            ["endpoint"],
            buckets=_LATENCY_S,
            registry=self._registry,
        )
        stages = Histogram(
            "world_model_stage_seconds",
            "Time of a prediction request in each stage.",
            ["stage"],
            buckets=_LATENCY_S,
            registry=self._registry,
        )
        self._any_request = requests
        self._requests = {
            (endpoint, code): requests.labels(endpoint, code)
            for endpoint in endpoints
            for code in STATUSES
        }
        self._seconds = {endpoint: seconds.labels(endpoint) for endpoint in endpoints}
        self._stages = [stages.labels(stage) for stage in STAGES]

    def _add_batching(self) -> None:
        registry = self._registry
        self._batch_rows = Histogram(
            "world_model_batch_rows", "Rows of a launch.", buckets=_COUNTS, registry=registry
        )
        self._batch_requests = Histogram(
            "world_model_batch_requests",
            "Requests that shared a launch.",
            buckets=_COUNTS,
            registry=registry,
        )
        rejected = Counter(
            "world_model_rejected",
            "Accepted or refused jobs that got no prediction, by reason.",
            ["reason"],
            registry=registry,
        )
        errors = Counter(
            "world_model_engine_errors", "Faults of the engine.", ["kind"], registry=registry
        )
        self._rejected = {reason: rejected.labels(reason) for reason in REJECTIONS}
        self._errors = {kind: errors.labels(kind) for kind in ENGINE_FAULTS}

    def watch_queues(
        self, depth: Callable[[JobClass], int], rows: Callable[[JobClass], int]
    ) -> None:
        """Read the queues' gauges by these functions at each scrape."""
        for name, text, read in (
            ("world_model_queue_depth", "Jobs that wait.", depth),
            ("world_model_queue_rows", "Rows that wait.", rows),
        ):
            gauge = Gauge(name, text, ["class"], registry=self._registry)
            for job_class in JobClass:
                gauge.labels(job_class.value).set_function(_reader(read, job_class))

    def watch_ready(self, is_ready: Callable[[], bool]) -> None:
        """Read the readiness gauge by this function at each scrape."""
        gauge = Gauge(
            "world_model_ready", "1 while /readyz answers 200, else 0.", registry=self._registry
        )
        gauge.set_function(lambda: float(is_ready()))

    def watch_model(
        self,
        info: ModelInfo,
        load_s: Callable[[], float],
        vram: Callable[[], Mapping[str, int] | None],
    ) -> None:
        """Describe the loaded model and the memory it takes."""
        Gauge(
            "world_model_info",
            "1, labelled with what is served.",
            ["version", "device", "checkpoint"],
            registry=self._registry,
        ).labels(info.version, info.device, info.name).set(1)
        Gauge(
            "world_model_load_seconds",
            "Time to move the model to its device, warm and verify it.",
            registry=self._registry,
        ).set_function(load_s)
        self._registry.register(_Vram(vram))

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Note an answered request; `endpoint` is a route template or `OTHER`."""
        series = self._requests.get((endpoint, str(status)))
        (series or self._any_request.labels(endpoint, str(status))).inc()
        self._seconds[endpoint].observe(seconds)

    def staged(self, *seconds: float) -> None:
        """Note a prediction request's seconds, one for each of `STAGES`."""
        for series, value in zip(self._stages, seconds, strict=True):
            series.observe(value)

    def launched(self, rows: int, requests: int) -> None:
        """Note a launch that succeeded."""
        self._batch_rows.observe(rows)
        self._batch_requests.observe(requests)

    def rejected(self, reason: str) -> None:
        """Note a job without an answer."""
        self._rejected[reason].inc()

    def engine_failed(self, kind: str) -> None:
        """Note a fault of the engine."""
        self._errors[kind].inc()

    def checked(self, verdicts: Sequence[Verdict]) -> None:
        """Note the verdicts on the sequences of one safety check."""
        for verdict, times in CountOf(v.verdict for v in verdicts).items():
            self._verdicts[verdict].inc(times)
        self._crash_probability.observe(
            [v.crash_probability for v in verdicts if v.crash_probability is not None]
        )

    def disagreed(self, uncertainty: Sequence[float]) -> None:
        """Note the finite uncertainty of each answered sequence."""
        self._uncertainty.observe(uncertainty)

    def render(self) -> bytes:
        """Return all series as Prometheus text."""
        return generate_latest(self._registry)


def _reader(read: Callable[[JobClass], int], job_class: JobClass) -> Callable[[], float]:
    return lambda: float(read(job_class))


class _BulkHistogram(Collector):
    """A histogram that takes thousands of values at once: one lock, one pass.

    The library's own takes a lock and walks its buckets for every value, which would hold the
    event loop for milliseconds after a planner's request.
    """

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)  # guarded by the lock, as is the sum
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, values: Sequence[float]) -> None:
        """Add finite values."""
        places = [bisect_left(self._bounds, value) for value in values]
        with self._lock:
            for place in places:
                self._counts[place] += 1
            self._sum += sum(values)

    def collect(self) -> Iterator[Metric]:
        """Return the present counts."""
        with self._lock:
            counts, total = list(accumulate(self._counts)), self._sum
        labels = [*(str(bound) for bound in self._bounds), "+Inf"]
        family = HistogramMetricFamily(self._name, self._text)
        family.add_metric([], list(zip(labels, counts, strict=True)), total)
        yield family


class _Resident(Collector):
    """Memory of this process, read at scrape."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "world_model_process_resident_bytes",
            "Memory of the service's process that is in RAM.",
            value=self._process.memory_info().rss,
        )


class _Vram(Collector):
    """Memory of the device, read at scrape; no series without a GPU."""

    def __init__(self, read: Callable[[], Mapping[str, int] | None]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("world_model_vram_bytes", "GPU memory by kind.", labels=["kind"])

    def collect(self) -> Iterator[Metric]:
        usage = self._read()
        if usage is None:
            return
        family = GaugeMetricFamily("world_model_vram_bytes", "GPU memory by kind.", labels=["kind"])
        for kind, count in usage.items():
            family.add_metric([kind], count)
        yield family
