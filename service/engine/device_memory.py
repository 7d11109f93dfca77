"""Memory and load of one GPU as NVML reports them, other processes' share included."""

from __future__ import annotations

import contextlib
from typing import Any

import pynvml


class DeviceMemory:
    """NVML's view of one GPU.

    Args:
        uuid: The device's UUID as CUDA names it, with or without its prefix. Indices do not serve:
            CUDA_VISIBLE_DEVICES renumbers CUDA's, not NVML's.
    """

    def __init__(self, uuid: str) -> None:
        bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
        # CUDA does not tell whether it names a device or a slice of one (MIG).
        self._uuids = f"GPU-{bare}", f"MIG-{bare}"

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
        """Return bytes used and present on the device; empty if the driver does not report them."""
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle())
        except pynvml.NVMLError:
            return {}
        return {"device_used": int(memory.used), "device_total": int(memory.total)}

    def utilization(self) -> float | None:
        """Return the share of the last moment in which the device computed; None if unknown.

        The driver's moment lasts between a sixth of a second and a second. It reports none for a
        slice of a device (MIG).
        """
        try:
            return float(pynvml.nvmlDeviceGetUtilizationRates(self._handle()).gpu) / 100
        except pynvml.NVMLError:
            return None

    def close(self) -> None:
        """Disconnect from the driver, if it is still there."""
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def _handle(self) -> Any:
        """Return what NVML knows the device, or the slice of one, by.

        Raises:
            NVMLError: It knows neither.
        """
        device, part = self._uuids
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(device)
        except pynvml.NVMLError:
            return pynvml.nvmlDeviceGetHandleByUUID(part)
