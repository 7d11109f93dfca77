"""Who may take how much of a GPU's memory, and how much of it is left."""

from __future__ import annotations

from collections.abc import Mapping

WORLD_MODEL = "world_model"
OTHER_BUDGETS = {
    "policy_network": 2 * 2**30,
    "value_network": 2 * 2**30,
    "replay_buffer": 4 * 2**30,
    "gradients_and_optimizer": 4 * 2**30,
}
"""Bytes that training beside this service may take, by the specification's table for 16 GB; the
table's row of the world model is the setting `vram_budget_bytes`."""


def budgets(usage: Mapping[str, int]) -> dict[str, int]:
    """Return bytes by component; `usage` is bytes by kind, its `budget` this service's cap."""
    return {WORLD_MODEL: usage["budget"], **OTHER_BUDGETS}


def headroom(usage: Mapping[str, int]) -> dict[str, int]:
    """Return how many bytes of its budget each component could still take now.

    The world model's own use is known. The others live in other processes, of which the driver
    tells only the sum; so for each of them, taken alone, it is what the device has free once the
    rest of the world model's budget is set aside, at most the component's whole budget. They are
    absent if the driver cannot tell.
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
