from __future__ import annotations

import threading

import numpy as np
import psutil
import pytest

from models.safety import Verdict
from service import __version__
from service.http.endpoints import ENDPOINTS, PATHS
from service.scheduling.jobs import JobClass
from service.settings import Settings
from service.telemetry.metrics import OTHER_BUDGETS, Metrics, Registry, budgets, headroom
from service.telemetry.requests import OTHER
from service.telemetry.series import COUNTS, Buckets
from tests.fakes.engine import fake_info
from tests.fakes.registry import counted

NAMES = {
    "requests",
    "outcomes",
    "request_seconds",
    "stage_seconds",
    "batch_rows",
    "batch_requests",
    "queue_depth",
    "queue_rows",
    "queue_seconds",
    "queue_row_seconds",
    "rejected",
    "engine_errors",
    "engine_busy_seconds",
    "vram_bytes",
    "vram_budget_bytes",
    "vram_headroom_bytes",
    "device_utilization_ratio",
    "process_resident_bytes",
    "crash_probability",
    "safety_verdicts",
    "uncertainty",
    "ready",
    "info",
    "build_info",
    "load_seconds",
}

GIB = 2**30
VRAM = {
    "allocated": 1 * GIB,
    "reserved": 2 * GIB,
    "peak": 1 * GIB,
    "budget": 4 * GIB,
    "device_used": 9 * GIB,
    "device_total": 16 * GIB,
}


class Read:
    """Metrics of a registry, watched things included."""

    def __init__(self, vram: dict[str, int] | None = None) -> None:
        self.registry = Registry()
        self.seconds = 0.0
        predictions = [endpoint.path for endpoint in ENDPOINTS]
        self.metrics = Metrics(self.registry, PATHS, predictions, ["planner"])
        self.metrics.watch_queues(len, lambda job_class: 7, lambda job_class: self.seconds)
        self.metrics.watch_ready(lambda: True)
        self.metrics.watch_model(fake_info(), lambda: 0.5)
        self.metrics.watch_device(lambda: vram, lambda: None if vram is None else 0.25)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"world_model_{name}", labels)


def test_every_name_of_the_contract_is_exported_and_no_other() -> None:
    names = {family.name for family in Read(VRAM).registry.collect()}

    assert names == {*(f"world_model_{name}" for name in NAMES), "process_start_time_seconds"}


def test_series_exist_from_the_start_at_zero() -> None:
    read = Read()

    for endpoint in (*PATHS, OTHER):
        assert read.value("requests_total", endpoint=endpoint, code="200") == 0
    for stage in ("parse", "queue", "compute", "respond"):
        assert read.value("stage_seconds_count", stage=stage) == 0
    for job_class in ("safety", "predict", "rollout"):
        assert read.value("queue_row_seconds_total", **{"class": job_class}) == 0
        assert read.value("queue_seconds", **{"class": job_class}) == 0
    for reason in ("queue_full", "too_late", "expired", "cancelled", "draining", "engine_down"):
        assert read.value("rejected_total", reason=reason) == 0
    for kind in ("exception", "bad_output", "non_finite", "out_of_memory", "canary"):
        assert read.value("engine_errors_total", kind=kind) == 0
    for verdict in ("safe", "unsafe", "unknown"):
        assert read.value("safety_verdicts_total", verdict=verdict) == 0
    assert read.value("crash_probability_count") == 0


def test_latency_buckets_start_at_100_microseconds() -> None:
    read = Read()
    read.metrics.answered("/predict", 200, 0.00005)
    read.metrics.observe_stages(0.00005, 0.0002, 1.0, 100.0)

    assert read.value("request_seconds_bucket", endpoint="/predict", le="0.0001") == 1
    assert read.value("stage_seconds_bucket", stage="queue", le="0.0001") == 0
    assert read.value("stage_seconds_bucket", stage="respond", le="60.0") == 0


@pytest.mark.parametrize(
    ("status", "is_impossible", "outcome"),
    [
        (200, False, "answered"),
        (204, False, "answered"),
        (304, False, "answered"),
        (401, False, "refused"),
        (422, False, "refused"),
        (429, False, "rejected"),
        (429, True, "impossible_deadline"),
        (499, False, "left"),
        (500, False, "failed"),
        (503, False, "failed"),
        (504, False, "late"),
        (504, True, "impossible_deadline"),
        (599, False, "failed"),
    ],
)
def test_a_request_has_one_outcome_and_still_its_status(
    status: int, is_impossible: bool, outcome: str
) -> None:
    read = Read()
    for _ in range(3):
        read.metrics.answered("/rollout", status, 0.1, "planner", is_impossible)

    assert counted(read.registry, "outcomes_total") == {("/rollout", "planner", outcome): 3}
    assert counted(read.registry, "requests_total") == {("/rollout", str(status)): 3}


def test_outcomes_tell_predictions_apart_and_whose_they_are() -> None:
    read = Read()
    read.metrics.answered("/predict", 200, 0.1, "planner")
    read.metrics.answered("/predict", 401, 0.1, "unknown")
    read.metrics.answered("/metrics", 200, 0.1)
    read.metrics.answered(OTHER, 404, 0.1, "planner")

    assert counted(read.registry, "outcomes_total") == {
        ("/predict", "planner", "answered"): 1,
        ("/predict", "unknown", "refused"): 1,
        (OTHER, "none", "answered"): 1,
        (OTHER, "planner", "refused"): 1,
    }


def test_the_start_of_the_process_is_told_and_stays() -> None:
    read = Read()
    name = "process_start_time_seconds"

    first, second = (read.registry.get_sample_value(name) for _ in range(2))

    assert first == second == psutil.Process().create_time()


def test_an_unforeseen_status_is_counted_all_the_same() -> None:
    read = Read()
    read.metrics.answered(OTHER, 304, 0.1)

    assert read.value("requests_total", endpoint=OTHER, code="304") == 1


def verdict(name: str, probability: float | None) -> Verdict:
    return Verdict(name, probability, [probability], None, 0.1, None, 0.5, (), 0.1)


def test_verdicts_and_probabilities_are_counted_in_bulk() -> None:
    read = Read()
    read.metrics.observe_verdicts(
        [verdict("safe", 0.0), verdict("safe", 0.05), verdict("unknown", None)]
    )
    read.metrics.observe_verdicts([verdict("unsafe", 1.0)])
    read.metrics.observe_uncertainties(np.array([0.001, 0.2, 50.0], np.float32))
    read.metrics.observe_uncertainty(0.001)

    assert read.value("safety_verdicts_total", verdict="safe") == 2
    assert read.value("crash_probability_bucket", le="0.001") == 1
    assert read.value("crash_probability_bucket", le="0.05") == 2
    assert read.value("crash_probability_bucket", le="1.0") == 3
    assert read.value("crash_probability_sum") == pytest.approx(1.05)
    assert read.value("uncertainty_bucket", le="0.0025") == 2
    assert read.value("uncertainty_bucket", le="10.0") == 3 + 4  # those of the verdicts
    assert read.value("uncertainty_bucket", le="+Inf") == 4 + 4
    assert read.value("uncertainty_sum") == pytest.approx(50.202 + 4 * 0.1)


def test_one_value_and_many_fall_into_the_same_buckets() -> None:
    one, many = Buckets(COUNTS), Buckets(COUNTS)
    values = np.array([0.0, 1.0, 1.5, 2.0, 8192.0, 8193.0])
    for value in values:
        one.add(value)
    many.add_all(values.tolist())

    assert one.read() == many.read()
    assert many.read()[0][0] == 2
    one.sort()
    assert one.read() == many.read()


def test_buckets_keep_no_more_values_than_they_can_sort_quickly() -> None:
    buckets = Buckets(COUNTS)
    for _ in range(100):
        buckets.add_all([1.0] * 256)
        assert len(buckets._seen[2]) <= 4096

    assert buckets.read()[0][0] == 25_600


def test_values_of_verdicts_do_not_wait_for_long() -> None:
    read = Read()
    for _ in range(100):
        read.metrics.observe_verdicts([verdict("safe", 0.0)] * 256)
        read.metrics.answered("/safety-check", 200, 0.1)
        assert len(read.metrics._crash_probability._seen[2]) <= 1024

    assert read.value("crash_probability_count") == 25_600


def test_buckets_may_be_read_while_they_are_filled_and_sorted() -> None:
    buckets = Buckets(COUNTS)
    is_over = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not is_over.is_set():
            counts, total = buckets.read()
            assert total == counts[-1]
            seen.append(counts[-1])

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(20_000):
        buckets.add(1.0)
        if n % 100 == 0:
            buckets.sort()
    is_over.set()
    reader.join()

    assert seen == sorted(seen)
    assert buckets.read()[0][-1] == 20_000


def test_many_requests_are_counted_as_few_are() -> None:
    read = Read()
    for _ in range(1000):
        read.metrics.answered("/predict", 200, 0.25)
        read.metrics.launched(3, 1, 0.5)

    assert read.value("request_seconds_count", endpoint="/predict") == 1000
    assert read.value("request_seconds_sum", endpoint="/predict") == 250
    assert read.value("batch_rows_bucket", le="4.0") == 1000


def test_gauges_are_read_at_each_scrape() -> None:
    read = Read()

    assert read.value("queue_depth", **{"class": "safety"}) == len("safety")
    assert read.value("queue_rows", **{"class": "rollout"}) == 7
    assert (read.value("ready"), read.value("load_seconds")) == (1, 0.5)
    assert (read.value("process_resident_bytes") or 0) > 10**6
    labels = {"version": "0123456789abcdef", "device": "cpu", "checkpoint": "fake-model"}
    assert read.value("info", **labels) == 1
    assert read.value("build_info", version=__version__) == 1


def test_what_only_the_event_loop_may_read_is_that_of_the_last_sample() -> None:
    read, safety = Read(), {"class": "safety"}
    read.seconds = 0.25
    read.metrics.sample()
    read.seconds = 0.5

    assert read.value("queue_seconds", **safety) == 0.25
    read.metrics.sample()
    assert read.value("queue_seconds", **safety) == 0.5


def test_time_of_waiting_rows_adds_up_by_class() -> None:
    read = Read()
    for job_class, row_seconds in (("safety", 0.5), ("rollout", 2.0), ("rollout", 0.0)):
        read.metrics.waited(JobClass(job_class), row_seconds)
    read.metrics.waited(JobClass.ROLLOUT, 4.0)

    assert counted(read.registry, "queue_row_seconds_total") == {("safety",): 0.5, ("rollout",): 6}


def test_a_gpus_series_are_absent_without_one() -> None:
    text = Read(None).metrics.render()

    assert b"vram" not in text
    assert b"device_utilization" not in text


def test_a_gpus_memory_and_work_are_shown_by_kind_and_by_component() -> None:
    read = Read(VRAM)

    assert {kind: read.value("vram_bytes", kind=kind) for kind in VRAM} == VRAM
    for component, budget, room in (
        ("world_model", 4, 2),
        ("policy_network", 2, 2),
        ("value_network", 2, 2),
        ("replay_buffer", 4, 4),
        ("gradients_and_optimizer", 4, 4),
    ):
        assert read.value("vram_budget_bytes", component=component) == budget * GIB
        assert read.value("vram_headroom_bytes", component=component) == room * GIB
    assert read.value("device_utilization_ratio") == 0.25


def usage(reserved: float, **device: float) -> dict[str, int]:
    kinds = {"budget": 4.0, "reserved": reserved, **device}
    return {kind: round(size * GIB) for kind, size in kinds.items()}


def test_the_budgets_are_those_of_the_specifications_table() -> None:
    default = Settings().vram_budget_bytes

    table = budgets({"budget": default})

    assert [size // GIB for size in table.values()] == [4, 2, 2, 4, 4]
    assert sum(table.values()) == 16 * GIB


@pytest.mark.parametrize(
    ("used", "own", "others"),
    [
        pytest.param(2, 2, [2, 2, 4, 4], id="nobody-else-there"),
        pytest.param(11, 2, [2, 2, 3, 3], id="training-took-nine"),
        pytest.param(14, 2, [0, 0, 0, 0], id="only-our-own-budget-is-left"),
        pytest.param(15, 1, [0, 0, 0, 0], id="others-took-some-of-ours"),
        pytest.param(16, 0, [0, 0, 0, 0], id="full"),
    ],
)
def test_headroom_keeps_the_world_models_budget_free(
    used: float, own: float, others: list[float]
) -> None:
    room = headroom(usage(2, device_used=used, device_total=16))

    assert room == {
        "world_model": own * GIB,
        **{name: size * GIB for name, size in zip(OTHER_BUDGETS, others, strict=True)},
    }


def test_without_the_driver_only_our_own_headroom_is_known() -> None:
    assert headroom(usage(3)) == {"world_model": GIB}
