"""What the device is asked by NVML, other processes' share included; and who may take how much."""

from __future__ import annotations

from collections.abc import Mapping

import pynvml

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


class DeviceMemory:
    """NVML's view of one GPU.

    Args:
        uuid: The device's UUID as CUDA names it, with or without the "GPU-" prefix. Indices do
            not serve: CUDA_VISIBLE_DEVICES renumbers CUDA's, not NVML's.
    """

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"

    def start(self) -> None:
        """Connect to the driver.

        Raises:
            OSError: The driver's library is missing or refuses.
        """
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as exc:
            raise OSError(f"NVML is not available: {exc}") from exc

    def read(self) -> dict[str, int]:
        """Return bytes used and present on the device; empty if the driver cannot tell."""
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        except pynvml.NVMLError:
            return {}
        return {"device_used": int(memory.used), "device_total": int(memory.total)}

    def utilization(self) -> float | None:
        """Return the share of the last moment in which the device computed; None if unknown.

        The driver's moment lasts between a sixth of a second and a second. It does not tell for a
        slice of a device (MIG).
        """
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
            return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
        except pynvml.NVMLError:
            return None

    def close(self) -> None:
        """Disconnect from the driver."""
        pynvml.nvmlShutdown()
