"""How many replicas there should be, by how long requests wait in them and how busy they are."""

from __future__ import annotations

import math
from typing import Any

WAIT_S = "wait_s"
"""What a replica reports: seconds until a request that comes now would be computed."""

BUSY = "busy"
"""What a replica reports: share of the time that its engine or its event loop worked, 0 to 1."""

_LONG_WAIT_S = 0.05
"""Mean wait from which on there are too few replicas: some fifty slices of the engine (each about
`preempt_after_s`, 1 ms). What is bearable makes short queues, whose mean is below that; what is not
makes queues that grow until requests are refused, so the exact bound matters little. A hundredth of
the default deadline of 5 s."""

_GROWTH = 0.5
"""Share of the present replicas that is added at once: bursts are met in few steps, and one step is
never much too far."""

_CALM = 0.5
"""How busy the others may be after one replica has gone. Well below 1, where waits would begin and
the replica would have to be started again."""


def replicas(context: Any) -> tuple[float, dict[str, Any]]:
    """Return how many replicas to aim at, and no state: Ray's policy for autoscaling.

    Ray keeps the number between `min_replicas` and `max_replicas`, and changes it only when the
    policy has asked for that during `upscale_delay_s` or `downscale_delay_s` without a break.

    Args:
        context: Ray's `AutoscalingContext`. Each replica's metrics are means over
            `look_back_period_s`.
    """
    count, target = context.current_num_replicas, context.target_num_replicas
    waits = context.aggregated_metrics.get(WAIT_S, {})
    if not waits or _is_too_new(context):
        return target, {}
    mean_wait_s = sum(waits.values()) / len(waits)
    if mean_wait_s > _LONG_WAIT_S:
        if count != target:  # what was asked for last is not there yet
            return target, {}
        return count + math.ceil(_GROWTH * count), {}
    # Only what all replicas have reported can be shared out among fewer.
    busy = context.aggregated_metrics.get(BUSY, {})
    if count > 1 and len(busy) >= count and sum(busy.values()) <= _CALM * (count - 1):
        return min(target, count - 1), {}
    return target, {}


def _is_too_new(context: Any) -> bool:
    """Return whether the means are still those of the former number of replicas, at least partly.

    Deciding by them again would add a second step for the same burst.
    """
    changed = [t for t in (context.last_scale_up_time, context.last_scale_down_time) if t]
    if not changed or context.current_time is None:
        return False
    return bool(context.current_time - max(changed) < context.config.look_back_period_s)
