"""CPUs are counted as affinity and control groups allow, from files as the kernel writes them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

import models.backends.cpus
import service.engine.engine
from models.backends.cpus import usable_cpus
from service.engine import Engine
from tests.test_service.test_engine.test_engine import checkpoint


@pytest.fixture(autouse=True)
def _eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


def machine(root: Path, group: str, **files: str) -> Path:
    """Write /proc/self/cgroup and files below /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": group, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_affinity_goes_before_the_machines_count(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == 8


def test_without_affinity_the_machines_count_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")

    assert usable_cpus(tmp_path) == 64

    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(tmp_path) == 1


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("20000 100000", 1),
        ("100000 100000", 1),
        ("1600000 100000", 8),
        ("max 100000", 8),
        ("", 8),
        ("nonsense", 8),
        ("100000 0", 8),
        ("0 100000", 8),
        ("-1 100000", 8),
        ("1 2 3", 8),
    ],
)
def test_a_quota_of_version_2_is_rounded_up_and_at_least_one(
    tmp_path: Path, quota: str, cpus: int
) -> None:
    root = machine(tmp_path, "0::/\n", **{"sys/fs/cgroup/cpu.max": f"{quota}\n"})

    assert usable_cpus(root) == cpus


def test_the_tightest_group_on_the_path_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "0::/kubepods/pod1/box\n",
        **{
            "sys/fs/cgroup/kubepods/pod1/box/cpu.max": "max 100000",
            "sys/fs/cgroup/kubepods/pod1/cpu.max": "250000 100000",
            "sys/fs/cgroup/kubepods/cpu.max": "600000 100000",
        },
    )

    assert usable_cpus(root) == 3


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("group", ["/", "/docker/0123abcd"], ids=["own names", "the host's names"])
def test_a_quota_of_version_1_is_found_in_a_container(
    tmp_path: Path, mount: str, group: str
) -> None:
    root = machine(
        tmp_path,
        f"9:memory:{group}\n4:cpu,cpuacct:{group}\n3:cpuset:{group}\n0::/\n",
        **{
            f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us": "350000\n",
            f"sys/fs/cgroup/{mount}/cpu.cfs_period_us": "100000\n",
        },
    )

    assert usable_cpus(root) == 4


def test_no_quota_of_version_1_is_minus_one(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "4:cpu:/a\n",
        **{
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "500000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )

    assert usable_cpus(root) == 5


def test_files_that_cannot_be_read_limit_nothing(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_bytes(b"\xff\xfe0::/\n")

    assert usable_cpus(tmp_path) == 8


def test_this_machine_has_one_at_least() -> None:
    assert 1 <= usable_cpus() <= 8


@pytest.mark.parametrize(("cpus", "threads"), [(1, 1), (2, 1), (3, 2), (64, 2)])
def test_the_engine_leaves_one_of_the_usable_cpus_to_http(
    monkeypatch: pytest.MonkeyPatch, cpus: int, threads: int
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(service.engine.engine, "usable_cpus", lambda: cpus)
    engine = Engine(checkpoint(), device="cpu")
    try:
        engine.start()
        assert torch.get_num_threads() == threads
    finally:
        engine.close()
        torch.set_num_threads(before)


def test_nobody_else_counts_cpus() -> None:
    root = Path(models.backends.cpus.__file__).parents[2]
    counted = {
        path.relative_to(root).as_posix()
        for room in ("models", "service")
        for path in (root / room).rglob("*.py")
        if re.search(r"cpu_count|sched_getaffinity", path.read_text())
    }

    assert counted == {"models/backends/cpus.py"}
