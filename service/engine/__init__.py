"""Rows in, predictions out, on one device: the only room of the service that imports torch.

In: states [B, S] and actions [B, H, A] as arrays, from one thread at a time. Out: a `Prediction`,
and what launches cost. May touch the device and its driver; knows neither HTTP nor the scheduler.
"""

from service.engine.engine import Engine

__all__ = ["Engine"]
