"""How many CPUs this process may use, as the kernel and the container limit it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use, at least 1.

    The machine's own count misleads wherever a process is given less: `taskset` and Kubernetes'
    static policy narrow the affinity, and `docker run --cpus` sets a quota of CPU time, where
    more threads than the quota pays for are all stopped for the rest of each period. A fraction
    of a CPU is rounded up.

    Args:
        root: Where `proc` and `sys` are.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        count = os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPUs that control groups allow: those of this process and all above it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            mounts, read = ["", "unified"], _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, read = [controllers, "cpu"], _quota_v1
        else:
            continue
        # In a container the group may be named as the host sees it, and is then not found below
        # its mount, which shows the container's own group as the topmost one.
        inner = PurePosixPath(group.lstrip("/"))
        for mount in mounts:
            for folder in (inner, *inner.parents):
                quota = read(root / "sys/fs/cgroup" / mount / folder)
                if quota is not None:
                    yield quota


def _quota_v2(group: Path) -> float | None:
    """Return a group's quota in CPUs; None if it has none."""
    return _ratio(_text(group / "cpu.max").split())


def _quota_v1(group: Path) -> float | None:
    """Return a group's quota in CPUs; None if it has none."""
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    return _ratio([_text(group / name).strip() for name in names])


def _ratio(numbers: list[str]) -> float | None:
    """Return quota by period; None for "max", -1 and whatever is no pair of positive numbers."""
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        return None
    quota, period = map(int, numbers)
    return quota / period if quota and period else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
