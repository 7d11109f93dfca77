"""Every metric of the service. The only importer of prometheus_client.

Label values come from closed sets, and all series exist from the start, so that `rate()` works on
the first hit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import psutil
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from models.safety import VERDICTS, Verdict
from service.buckets import COUNTS, LATENCY_S, PROBABILITIES, UNCERTAINTIES, Buckets
from service.interface import Array, ModelInfo
from service.jobs import JobClass
from service.observer import ENGINE_FAULTS, REJECTIONS

CONTENT_TYPE = CONTENT_TYPE_LATEST
Registry = CollectorRegistry
STAGES = ("parse", "queue", "compute", "respond")
OTHER = "other"
"""Label of paths that no route has: a scanner must not create series."""

STATUSES = ("200", "401", "404", "405", "413", "422", "429", "499", "500", "503", "504")
"""499: the caller left before the answer."""


class Metrics:
    """What happened, as series of one registry.

    `engine_failed` may be called from any thread, all else on the event loop's.

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
        self._add_answers()

    def _add_traffic(self, endpoints: Sequence[str]) -> None:
        requests = _Counts(
            "world_model_requests",
            "Answered HTTP requests by route and status; 499 if the caller left.",
            ("endpoint", "code"),
            [(endpoint, code) for endpoint in endpoints for code in STATUSES],
        )
        seconds = _Histogram(
            "world_model_request_seconds",
            "Time from the first to the last byte of a request's handling.",
            LATENCY_S,
            "endpoint",
            endpoints,
        )
        stages = _Histogram(
            "world_model_stage_seconds",
            "Time of a prediction request in each stage.",
            LATENCY_S,
            "stage",
            STAGES,
        )
        self._register(requests, seconds, stages)
        self._requests, self._seconds = requests, seconds.series
        self._stages = [stages.series[stage] for stage in STAGES]

    def _add_batching(self) -> None:
        rows = _Histogram("world_model_batch_rows", "Rows of a launch.", COUNTS)
        requests = _Histogram(
            "world_model_batch_requests", "Requests that shared a launch.", COUNTS
        )
        self._register(rows, requests)
        self._batch_rows, self._batch_requests = rows.only, requests.only
        rejected = Counter(
            "world_model_rejected",
            "Accepted or refused jobs that got no prediction, by reason.",
            ["reason"],
            registry=self._registry,
        )
        errors = Counter(
            "world_model_engine_errors", "Faults of the engine.", ["kind"], registry=self._registry
        )
        self._rejected = {reason: rejected.labels(reason) for reason in REJECTIONS}
        self._errors = {kind: errors.labels(kind) for kind in ENGINE_FAULTS}

    def _add_answers(self) -> None:
        self._verdicts = _Counts(
            "world_model_safety_verdicts",
            "Verdicts of safety checks.",
            ("verdict",),
            [(verdict,) for verdict in VERDICTS],
        )
        crash_probability = _Histogram(
            "world_model_crash_probability",
            "Crash probability of the sequences of safety checks.",
            PROBABILITIES,
        )
        uncertainty = _Histogram(
            "world_model_uncertainty",
            "Disagreement of the ensemble over each answered sequence, in standard deviations "
            "of the training states.",
            UNCERTAINTIES,
        )
        self._register(self._verdicts, crash_probability, uncertainty, _Resident())
        self._crash_probability, self._uncertainty = crash_probability.only, uncertainty.only

    def _register(self, *collectors: Collector) -> None:
        for collector in collectors:
            self._registry.register(collector)

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
                gauge.labels(job_class.value).set_function(partial(read, job_class))

    def watch_ready(self, is_ready: Callable[[], bool]) -> None:
        """Read the readiness gauge by this function at each scrape."""
        Gauge(
            "world_model_ready", "1 while /readyz answers 200, else 0.", registry=self._registry
        ).set_function(is_ready)

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
        self._requests.add((endpoint, str(status)))
        self._seconds[endpoint].add(seconds)

    def staged(self, *seconds: float) -> None:
        """Note a prediction request's seconds, one for each of `STAGES`."""
        for series, value in zip(self._stages, seconds, strict=True):
            series.add(value)

    def launched(self, rows: int, requests: int) -> None:
        """Note a launch that succeeded."""
        self._batch_rows.add(rows)
        self._batch_requests.add(requests)

    def rejected(self, reason: str) -> None:
        """Note a job without an answer."""
        self._rejected[reason].inc()

    def engine_failed(self, kind: str) -> None:
        """Note a fault of the engine."""
        self._errors[kind].inc()

    def checked(self, verdicts: Sequence[Verdict]) -> None:
        """Note the verdicts on the sequences of one safety check."""
        for verdict in verdicts:
            self._verdicts.add((verdict.verdict,))
            if verdict.crash_probability is not None:
                self._crash_probability.add(verdict.crash_probability)

    def disagreed(self, uncertainty: Array) -> None:
        """Note the finite uncertainty of each answered sequence, [K]."""
        if len(uncertainty) == 1:
            self._uncertainty.add(float(uncertainty[0]))
        else:
            self._uncertainty.add_all(uncertainty)

    def render(self) -> bytes:
        """Return all series as Prometheus text."""
        return generate_latest(self._registry)


# The library's own counters and histograms take a lock for every value, and histograms walk their
# buckets: a microsecond each, eight times a request. These are plain dicts and lists, to which the
# event loop's thread alone adds.


class _Counts(Collector):
    """A counter; the series given at the start are there from the start."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], known: Iterable[tuple[str, ...]]
    ) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._counts = dict.fromkeys(known, 0)

    def add(self, labels: tuple[str, ...]) -> None:
        """Count one event, even one with labels that nobody foresaw."""
        self._counts[labels] = self._counts.get(labels, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """Return the present counts."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in self._counts.copy().items():
            family.add_metric(labels, count)
        yield family


class _Histogram(Collector):
    """A histogram, without a label or with one whose values are known from the start."""

    def __init__(
        self,
        name: str,
        text: str,
        bounds: Sequence[float],
        label: str | None = None,
        values: Iterable[str] = ("",),
    ) -> None:
        self._name = name
        self._text = text
        self._label = label
        self.series = {value: Buckets(bounds) for value in values}

    @property
    def only(self) -> Buckets:
        """The series of a histogram without a label."""
        return self.series[""]

    def collect(self) -> Iterator[Metric]:
        """Return the present counts."""
        labels = [] if self._label is None else [self._label]
        family = HistogramMetricFamily(self._name, self._text, labels=labels)
        for value, buckets in self.series.items():
            family.add_metric([value] if labels else [], *buckets.read())
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
