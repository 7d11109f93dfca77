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
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from models.safety import VERDICTS, Verdict
from service import __version__
from service.interface import Array, ModelInfo
from service.scheduling.jobs import ENGINE_FAULTS, REJECTIONS, JobClass
from service.telemetry.requests import ATTRIBUTION, NO_KEY, OTHER, UNKNOWN_KEY, Requests
from service.telemetry.series import (
    COUNTS,
    LATENCY_S,
    PROBABILITIES,
    UNCERTAINTIES,
    Counts,
    Histogram,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
Registry = CollectorRegistry
STAGES = ("parse", "queue", "compute", "respond")
_SORTED_AFTER = 1024
"""Requests and verdicts after which histograms sort what came."""

STATUSES = (
    *("200", "400", "401", "404", "405", "408", "413", "414", "415", "422", "429", "431"),
    *("499", "500", "503", "504"),
)
"""499: the caller left before the answer."""

WORLD_MODEL = "world_model"
OTHER_BUDGETS = {
    "policy_network": 2 * 2**30,
    "value_network": 2 * 2**30,
    "replay_buffer": 4 * 2**30,
    "gradients_and_optimizer": 4 * 2**30,
}
"""Bytes that training beside this service may take, by the specification's table for 16 GB; the
table's row of the world model is the setting `vram_budget_bytes`."""


class Metrics:
    """What happened, as series of one registry.

    `engine_failed` and `render` may be called from any thread, all else on the event loop's.

    Args:
        registry: Lets others read all series; a fresh one each service.
        endpoints: Route templates; the endpoint label has two more values.
        predictions: Those of them that the model answers.
        keys: Names of the keys that callers may have; empty: they need none.
    """

    def __init__(
        self,
        registry: Registry,
        endpoints: Iterable[str],
        predictions: Iterable[str] = (),
        keys: Iterable[str] = (),
    ) -> None:
        # A time stamp for every series would double each scrape.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        # What is rare, or read at scrape, is left to the library; the rest writes its own text.
        self._library = CollectorRegistry()
        self._hot: list[Requests | Counts | Histogram] = []
        self._sampled: list[tuple[Gauge, Callable[[], float]]] = []
        self._unsorted = 0
        others = ATTRIBUTION, OTHER
        self._add_traffic([*endpoints, *others], [*predictions, *others], sorted(keys))
        self._add_batching()
        self._add_answers()
        self._library.register(_Process())
        registry.register(_Parsed(self.render))

    def _add_traffic(
        self, endpoints: Sequence[str], predictions: Sequence[str], keys: Sequence[str]
    ) -> None:
        requests = Requests(
            [(endpoint, code) for endpoint in endpoints for code in STATUSES],
            predictions,
            [NO_KEY, *keys, *([UNKNOWN_KEY] if keys else [])],
        )
        seconds = Histogram(
            "world_model_request_seconds",
            "Time from the first to the last byte of a request's handling.",
            LATENCY_S,
            "endpoint",
            endpoints,
        )
        stages = Histogram(
            "world_model_stage_seconds",
            "Time of a prediction request in each stage.",
            LATENCY_S,
            "stage",
            STAGES,
        )
        self._hot += requests, seconds, stages
        self._requests = requests.counts
        self._seconds = seconds.series
        self._stages = [stages.series[stage] for stage in STAGES]

    def _add_batching(self) -> None:
        rows = Histogram("world_model_batch_rows", "Rows of a launch.", COUNTS)
        requests = Histogram("world_model_batch_requests", "Requests that shared a launch.", COUNTS)
        self._hot += rows, requests
        self._batch_rows, self._batch_requests = rows.only, requests.only
        self._busy = self._counter(
            "engine_busy_seconds", "Time that the engine computed launches that succeeded."
        )
        waited = self._counter(
            "queue_row_seconds", "Time that rows waited for their launch, of all rows.", "class"
        )
        rejected = self._counter(
            "rejected", "Accepted or refused jobs that got no prediction, by reason.", "reason"
        )
        errors = self._counter("engine_errors", "Faults of the engine.", "kind")
        self._waited = {job_class: waited.labels(job_class.value) for job_class in JobClass}
        self._rejected = {reason: rejected.labels(reason) for reason in REJECTIONS}
        self._errors = {kind: errors.labels(kind) for kind in ENGINE_FAULTS}

    def _add_answers(self) -> None:
        verdicts = Counts(
            "world_model_safety_verdicts",
            "Verdicts of safety checks.",
            ("verdict",),
            [(verdict,) for verdict in VERDICTS],
        )
        crash_probability = Histogram(
            "world_model_crash_probability",
            "Crash probability of the sequences of safety checks.",
            PROBABILITIES,
        )
        uncertainty = Histogram(
            "world_model_uncertainty",
            "Disagreement of the ensemble over each answered sequence, in standard deviations "
            "of the training states.",
            UNCERTAINTIES,
        )
        self._hot += verdicts, crash_probability, uncertainty
        self._verdicts = verdicts.counts
        self._crash_probability, self._uncertainty = crash_probability.only, uncertainty.only

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"world_model_{name}", text, labels, registry=self._library)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"world_model_{name}", text, labels, registry=self._library)

    def watch_queues(
        self,
        depth: Callable[[JobClass], int],
        rows: Callable[[JobClass], int],
        seconds: Callable[[JobClass], float],
    ) -> None:
        """Read the queues' gauges by these functions at each scrape.

        Args:
            depth: Jobs that wait; any thread calls it.
            rows: Rows that wait; any thread calls it.
            seconds: What they take, s; only `sample` calls it.
        """
        for name, text, read in (
            ("queue_depth", "Jobs that wait.", depth),
            ("queue_rows", "Rows that wait.", rows),
        ):
            gauge = self._gauge(name, text, "class")
            for job_class in JobClass:
                gauge.labels(job_class.value).set_function(partial(read, job_class))
        gauge = self._gauge(
            "queue_seconds", "Engine time that what waits or is begun takes.", "class"
        )
        for job_class in JobClass:
            self._sampled.append((gauge.labels(job_class.value), partial(seconds, job_class)))

    def watch_ready(self, is_ready: Callable[[], bool]) -> None:
        """Read the readiness gauge by this function at each scrape."""
        self._gauge("ready", "1 while /readyz answers 200, else 0.").set_function(is_ready)

    def watch_model(self, info: ModelInfo, load_s: Callable[[], float]) -> None:
        """Describe the loaded model and the service that serves it."""
        labels = ("version", "device", "checkpoint")
        served = self._gauge("info", "1, labelled with what is served.", *labels)
        served.labels(info.version, info.device, info.name).set(1)
        built = self._gauge("build_info", "1, labelled with the service's version.", "version")
        built.labels(__version__).set(1)
        self._gauge(
            "load_seconds", "Time to move the model to its device, warm and verify it."
        ).set_function(load_s)

    def watch_device(
        self, vram: Callable[[], Mapping[str, int] | None], utilization: Callable[[], float | None]
    ) -> None:
        """Read a GPU's gauges by these functions at each scrape; None: no series."""
        self._library.register(_Device(vram, utilization))

    def answered(
        self,
        endpoint: str,
        status: int,
        seconds: float,
        key: str = NO_KEY,
        is_impossible: bool = False,
    ) -> None:
        """Note an answered request.

        Args:
            endpoint: Route template, `ATTRIBUTION` or `OTHER`.
            status: Of the answer, or 499.
            seconds: From its first to its last byte.
            key: Name of the key that it was admitted by, or what stands for it.
            is_impossible: Whether its caller chose a deadline that an idle service would miss.
        """
        self._requests[endpoint, status, key, is_impossible] += 1
        self._seconds[endpoint].add(seconds)
        self._unsorted += 1
        if self._unsorted >= _SORTED_AFTER:
            self._sort()

    def _sort(self) -> None:
        self._unsorted = 0
        for metric in self._hot:
            if isinstance(metric, Histogram):
                metric.sort()

    def observe_stages(
        self, parse_s: float, queue_s: float, compute_s: float, respond_s: float
    ) -> None:
        """Note a prediction request's seconds in each of `STAGES`."""
        parse, queue, compute, respond = self._stages
        parse.add(parse_s)
        queue.add(queue_s)
        compute.add(compute_s)
        respond.add(respond_s)

    def launched(self, rows: int, requests: int, seconds: float) -> None:
        """Note a launch that succeeded."""
        self._batch_rows.add(rows)
        self._batch_requests.add(requests)
        self._busy.inc(seconds)

    def waited(self, job_class: JobClass, row_seconds: float) -> None:
        """Note that jobs wait no more, and for how long each of their rows did, in sum."""
        self._waited[job_class].inc(row_seconds)

    def engine_busy_s(self) -> float:
        """Return how long the engine has computed launches that succeeded, in seconds."""
        (busy,) = self._busy.collect()
        return float(busy.samples[0].value)

    def rejected(self, reason: str) -> None:
        """Note a job without an answer."""
        self._rejected[reason].inc()

    def engine_failed(self, kind: str) -> None:
        """Note a fault of the engine."""
        self._errors[kind].inc()

    def observe_verdicts(
        self, verdicts: Sequence[Verdict], *, has_uncertainty: bool = True
    ) -> None:
        """Note the verdicts on the sequences of one safety check.

        Args:
            verdicts: One a sequence.
            has_uncertainty: Whether the uncertainty is that of all members, and so to be compared.
        """
        for verdict in verdicts:
            self._verdicts[verdict.verdict,] += 1
            if verdict.crash_probability is not None:
                self._crash_probability.add(verdict.crash_probability)
            if has_uncertainty and verdict.uncertainty is not None:
                self._uncertainty.add(verdict.uncertainty)
        self._unsorted += len(verdicts)

    def observe_uncertainties(self, uncertainty: Array) -> None:
        """Note the finite uncertainty of each answered sequence, [K]."""
        self._uncertainty.add_all(uncertainty.tolist())

    def observe_uncertainty(self, uncertainty: float) -> None:
        """Note the finite uncertainty of the only answered sequence."""
        self._uncertainty.add(uncertainty)

    def sample(self) -> None:
        """Read what only the event loop's thread may read, for `render` to show."""
        for gauge, read in self._sampled:
            gauge.set(read())

    def render(self) -> bytes:
        """Return all series as Prometheus text."""
        lines = [line for metric in self._hot for line in metric.lines()]
        return "\n".join([*lines, ""]).encode() + generate_latest(self._library)


class _Parsed(Collector):
    """Series read back from their text: what the registry shows is what Prometheus gets."""

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render

    def collect(self) -> Iterator[Metric]:
        yield from text_string_to_metric_families(self._render().decode())


class _Process(Collector):
    """Memory of this process, read at scrape, and when it began."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        # Once: where it is counted from the machine's start, setting the clock would change it.
        self._start_s = self._process.create_time()

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            value=self._start_s,
        )
        yield GaugeMetricFamily(
            "world_model_process_resident_bytes",
            "Memory of the service's process that is in RAM.",
            value=self._process.memory_info().rss,
        )


class _Device(Collector):
    """Memory and work of the device, read at scrape; no series without a GPU."""

    def __init__(
        self, vram: Callable[[], Mapping[str, int] | None], utilization: Callable[[], float | None]
    ) -> None:
        self._vram = vram
        self._utilization = utilization

    def collect(self) -> Iterator[Metric]:
        usage = self._vram()
        if usage is not None:
            yield _by("vram_bytes", "GPU memory by kind.", "kind", usage)
            text = "GPU memory that a component may take."
            yield _by("vram_budget_bytes", text, "component", budgets(usage))
            text = "GPU memory of its budget that a component could still take."
            yield _by("vram_headroom_bytes", text, "component", headroom(usage))
        utilization = self._utilization()
        if utilization is not None:
            yield GaugeMetricFamily(
                "world_model_device_utilization_ratio",
                "Share of the last moment in which the GPU computed, for whomever.",
                value=utilization,
            )


def _by(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"world_model_{name}", text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def budgets(usage: Mapping[str, int]) -> dict[str, int]:
    """Return bytes by component; `usage` is bytes by kind, its `budget` this service's cap."""
    return {WORLD_MODEL: usage["budget"], **OTHER_BUDGETS}


def headroom(usage: Mapping[str, int]) -> dict[str, int]:
    """Return how many bytes of its budget each component could still take now.

    The world model's own use is known. The others live in other processes, of which the driver
    reports only the sum; so for each of them, taken alone, it is what the device has free once the
    rest of the world model's budget is set aside, at most the component's whole budget. They are
    absent if the driver does not report it.
    """
    own = usage["budget"] - usage["reserved"]
    if "device_total" not in usage:
        return {WORLD_MODEL: own}
    free = usage["device_total"] - usage["device_used"]
    left = max(0, free - own)
    return {
        WORLD_MODEL: min(own, free),
        **{component: min(budget, left) for component, budget in OTHER_BUDGETS.items()},
    }
