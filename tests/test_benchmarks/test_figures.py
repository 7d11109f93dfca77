from __future__ import annotations

import pytest

from benchmarks.serving.figures import (
    best,
    due_s,
    medians,
    parse_wrk,
    percentile,
    ratio,
    scheduled_latencies_s,
)

OUTPUT = """Running 2s test @ http://127.0.0.1:8000/predict
  1 threads and 16 connections
Requests/sec:   1000.12
FIGURES requests=2000 duration_us=2000000 refused={refused} broken=0 late={late} p50_us=900 p99_us=5
"""


def test_rate_is_read_from_wrk() -> None:
    seen = parse_wrk(OUTPUT.format(refused=0, late=0))

    assert seen.rate == 1000.0
    assert seen.faults == {}


def test_faults_are_read_from_wrk() -> None:
    assert parse_wrk(OUTPUT.format(refused=3, late=1)).faults == {"refused": 3, "late": 1}


@pytest.mark.parametrize(
    "output",
    [
        pytest.param("unable to connect to 127.0.0.1:1 Connection refused", id="no figures"),
        pytest.param(
            "FIGURES requests=0 duration_us=0 refused=0 broken=0 late=0 p50_us=0 p99_us=0",
            id="no time",
        ),
    ],
)
def test_output_without_figures_is_refused(output: str) -> None:
    with pytest.raises(ValueError, match=r"no figures|nothing"):
        parse_wrk(output)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)]
)
def test_percentile_is_a_measured_value(share: float, expected: float) -> None:
    assert percentile([float(x) for x in range(100, 0, -1)], share) == expected


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_percentile_needs_values_and_a_share(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="percentiles need"):
        percentile(values, share)


def test_requests_are_due_on_schedule_and_several_at_once() -> None:
    assert due_s(0.5, 10) == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert due_s(0.2, 10, at_once=3) == [0.0, 0.0, 0.0, 0.1, 0.1, 0.1]
    assert due_s(0.01, 10) == [0.0]


def test_latency_counts_from_the_scheduled_moment() -> None:
    due, answered = [1.0, 1.5, 2.0], [1.25, 3.5, 3.5]

    assert scheduled_latencies_s(due, answered) == [0.25, 2.0, 1.5]


def test_medians_leave_out_what_was_never_measured() -> None:
    assert medians({"a": {"x": [3.0, 1.0, 2.0], "y": []}}) == {"a": {"x": 2.0}}


def test_best_is_among_those_measured() -> None:
    figures = {"a": {"x": 1.0}, "b": {"x": 3.0}, "c": {"y": 9.0}}

    assert best(figures, ["a", "b", "c", "d"], "x") == "b"
    assert best(figures, ["a", "b"], "x", lowest=True) == "a"
    assert best(figures, ["d"], "x") is None


def test_ratio_needs_both_sides() -> None:
    figures = {"a": {"x": 3.0}, "b": {"x": 2.0}, "c": {}}

    assert ratio(figures, "a", "b", "x") == 1.5
    assert ratio(figures, "a", "c", "x") is None
    assert ratio(figures, "a", None, "x") is None
