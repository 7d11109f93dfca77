"""Each check of the GPU's path fails if what it is about is wrong: faults, put in on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models.backends.fused import NUMBERS, Fused
from models.prediction import Array, Prediction
from tests.test_models.test_backends.driver import Driver
from tools.gpu_check import device, over_http, report

MIB = 2**20


@pytest.fixture(autouse=True)
def failed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has failed in this test."""
    failed: list[str] = []
    monkeypatch.setattr(report, "_failed", failed)
    return failed


def smi(monkeypatch: pytest.MonkeyPatch, folder: Path, says: str) -> None:
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{says}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_a_stage_in_which_a_check_fails_ends_with_1() -> None:
    assert report.exit_code() == 0
    report.passed("something", is_good=True)
    assert report.exit_code() == 0
    report.passed("something else", is_good=False)
    assert report.exit_code() == 1


def answers() -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(0)
    return {
        "64 rows": {
            "states": rng.normal(size=(64, 5, 3)).tolist(),
            "dones": rng.uniform(size=(64, 4)).tolist(),
            "id": "a",
        },
        "safety-check": {
            "verdict": "unsafe",
            "crash_probability_by_step": [0.1, 0.5],
            "reasons": [{"code": "crash"}],
        },
    }


def one_number(given: dict[str, Any]) -> None:
    given["64 rows"]["states"][7][3][1] += 5


def not_finite(given: dict[str, Any]) -> None:
    given["64 rows"]["dones"][7][3] = float("nan")


def fewer_rows(given: dict[str, Any]) -> None:
    given["64 rows"]["states"] = given["64 rows"]["states"][:1]


def no_field(given: dict[str, Any]) -> None:
    del given["64 rows"]["dones"]


def no_answer(given: dict[str, Any]) -> None:
    del given["64 rows"]


def other_verdict(given: dict[str, Any]) -> None:
    given["safety-check"]["verdict"] = "safe"


@pytest.mark.parametrize(
    "fault", [one_number, not_finite, fewer_rows, no_field, no_answer, other_verdict]
)
def test_devices_that_answer_differently_fail(
    failed: list[str], fault: Callable[[dict[str, Any]], None]
) -> None:
    ours = answers()
    over_http.compare({"cuda": ours, "cpu": answers()})
    assert not failed

    fault(ours)
    over_http.compare({"cuda": ours, "cpu": answers()})
    assert len(failed) == 1


@pytest.mark.parametrize(
    ("wanted", "told", "is_good"),
    [
        ("cuda", "NVIDIA RTX A4000", True),
        ("cpu", "cpu", True),
        ("cuda", "NVIDIA RTX A4000 (graphs)", False),
        ("cuda", "cpu", False),
        ("cpu", "cpu (eager)", False),
    ],
)
def test_a_service_that_computes_otherwise_fails(
    monkeypatch: pytest.MonkeyPatch, failed: list[str], wanted: str, told: str, is_good: bool
) -> None:
    body = json.dumps({"device": told}).encode()
    monkeypatch.setattr(over_http, "asked", lambda *_: body)

    over_http.answers("", wanted)

    assert (not failed) == is_good


VRAM = {
    "allocated": 10,
    "reserved": 20,
    "peak": 15,
    "budget": 4096,
    "device_used": 700,
    "device_total": 16384,
}


def metrics(**changed: int | None) -> str:
    kinds = {**VRAM, **changed}
    return "".join(
        f'world_model_vram_bytes{{kind="{kind}"}} {float(mib * MIB)}\n'
        for kind, mib in kinds.items()
        if mib is not None
    )


@pytest.mark.parametrize(
    "changed",
    [{kind: None} for kind in VRAM]
    + [{kind: 0} for kind in VRAM]
    + [{"reserved": 5000}, {"allocated": 17}, {"device_used": 4000}],
    ids=str,
)
def test_memory_that_cannot_be_right_fails(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    failed: list[str],
    changed: Mapping[str, int | None],
) -> None:
    smi(monkeypatch, tmp_path, "echo 900")
    over_http.check_memory(metrics())
    assert not failed

    over_http.check_memory(metrics(**changed))
    assert failed


@pytest.mark.parametrize("says", ["exit 9", "echo unknown", "true"])
def test_nvidia_smi_that_says_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failed: list[str], says: str
) -> None:
    smi(monkeypatch, tmp_path, says)

    over_http.check_memory(metrics())

    assert failed == ["memory by /metrics is nvidia-smi's"]


@pytest.mark.parametrize("seen", [{}, {"device_used": 700 * MIB}])
def test_a_device_that_nvml_does_not_find_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failed: list[str], seen: dict[str, int]
) -> None:
    smi(monkeypatch, tmp_path, "echo 900")
    properties = SimpleNamespace(name="Played", multi_processor_count=48, uuid="abc")
    memory = SimpleNamespace(start=lambda: None, read=lambda: seen)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: None)
    monkeypatch.setattr(device, "DeviceMemory", lambda uuid: memory)

    device.compare_memory()

    assert len(failed) == (0 if seen else 2)


def small_feature(kernels: Any, seen: Prediction) -> None:
    """A fault in one feature, which the norm over all would hide."""
    seen.states[:, -1, 5] += 0.01


def large_kernel(kernels: Any, seen: Prediction) -> None:
    """A fault of the last bit, in one of both kernels."""
    if len(seen.states) > 288 and kernels.multiprocessors == 48:
        seen.rewards[5] = np.nextafter(seen.rewards[5], np.float32(9))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (None, None),
        (small_feature, "numbers 17x2"),
        (large_kernel, "bits by the kernels of an A4000, 289 rows"),
    ],
    ids=["none", "small feature", "large kernel"],
)
def test_kernels_with_a_fault_fail(
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
    failed: list[str],
    fault: Callable[[Any, Prediction], None] | None,
    where: str | None,
) -> None:
    class Wrong(Fused):
        def compute(
            self,
            states: Array,
            actions: Array,
            prediction: Prediction,
            members: int | None = None,
        ) -> None:
            super().compute(states, actions, prediction, members)
            if fault is not None:
                fault(self._kernels, prediction)

    monkeypatch.setattr(report, "Fused", Wrong)
    monkeypatch.setattr(device, "device", lambda stack: torch.device("cpu"))

    device.numbers()

    assert failed == [] if where is None else where in failed


@pytest.mark.slow
def test_kernels_that_an_a4000_has_no_memory_for_fail(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, failed: list[str]
) -> None:
    monkeypatch.setattr(device, "device", lambda stack: torch.device("cpu"))
    monkeypatch.setattr(device, "_A4000_SHARED_BYTES", 64 * 1024)

    device.numbers()

    assert failed == ["both kernels fit an A4000's shared memory"]


class Budgeted:
    """An engine that keeps to its budget of memory."""

    digit = 0
    beyond = 0
    alone = 0

    def __init__(self, checkpoint: Any, *, vram_budget_bytes: int, **_: Any) -> None:
        self.budget = vram_budget_bytes
        self.costs = SimpleNamespace(launch_rows=(8, 64))

    def report_errors_to(self, count: object) -> None: ...
    def start(self) -> None: ...
    def close(self) -> None: ...

    def rollout(self, states: Array, actions: Array) -> Prediction:
        seen = Prediction.blank(len(states), actions.shape[1], states.shape[1])
        for name in NUMBERS:
            getattr(seen, name)[:] = 1
        seen.dones[:] += self.alone * (len(states) == 1)
        seen.dones[10:20] += self.digit * self.budget
        return seen

    def vram(self) -> dict[str, int]:
        reserved = self.budget + self.beyond
        return {"allocated": 1, "peak": 2, "reserved": reserved, "budget": self.budget}


@pytest.mark.parametrize(
    ("fault", "count"),
    [({}, 0), ({"digit": 1}, 4), ({"beyond": 1}, 5), ({"alone": 1}, 5)],
    ids=["none", "bits differ by budget", "beyond the budget", "a row alone differs"],
)
def test_budgets_that_are_not_kept_fail(
    monkeypatch: pytest.MonkeyPatch, failed: list[str], fault: dict[str, int], count: int
) -> None:
    monkeypatch.setattr(device, "Engine", type("Faulty", (Budgeted,), fault))
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    monkeypatch.setattr(device, "bundled", lambda: None)
    rows = np.zeros((4096, 2), np.float32), np.zeros((4096, 3, 2), np.float32)
    monkeypatch.setattr(device, "rows_of", lambda *_: rows)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share: None)

    device.memory()

    assert len(failed) == count
