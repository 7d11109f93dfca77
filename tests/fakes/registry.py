"""What a registry holds, and bodies that make it hold something."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from service.telemetry.metrics import Registry
from tests.fakes.engine import ACTIONS, STATE

BODIES: dict[str, dict[str, Any]] = {
    "/predict": {"state": STATE, "action": ACTIONS[0]},
    "/rollout": {"state": STATE, "actions": ACTIONS},
    "/safety-check": {"state": STATE, "actions": ACTIONS},
}
Labels = tuple[str, ...]


def counted(registry: Registry, name: str) -> dict[Labels, float]:
    """Return a metric's series that are not zero, by their labels' values."""
    samples = [s for family in registry.collect() for s in family.samples]
    found = {tuple(s.labels.values()): s.value for s in samples if s.name == f"world_model_{name}"}
    return {labels: value for labels, value in found.items() if value}


def value(registry: Registry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(f"world_model_{name}", labels)
    assert found is not None, name
    return found


def bucketed(registry: Registry, name: str) -> list[float]:
    """Return how many values each bucket of a histogram holds."""
    samples = [s for family in registry.collect() for s in family.samples]
    upto = [s.value for s in samples if s.name == f"world_model_{name}_bucket"]
    return [after - before for before, after in pairwise([0.0, *upto])]
