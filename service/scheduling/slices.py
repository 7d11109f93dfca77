"""Slices of launches: how long they are, and where they are computed."""

from __future__ import annotations

from service.interface import EngineLike, Prediction
from service.scheduling.jobs import Bounds, Launch
from service.scheduling.launches import checked, gather


def next_slice(
    launch: Launch,
    engine: EngineLike,
    bounds: Bounds,
    pace: float,
    watched: int,
    is_overtaken: bool,
) -> tuple[int, bool]:
    """Return how many steps are computed at once at most, and whether on the event loop.

    Args:
        launch: Gets the slice.
        engine: Knows what it costs, undisturbed.
        bounds: How long it may be.
        pace: How much longer than undisturbed computing takes now.
        watched: File descriptor that tells of input; -1: there is none.
        is_overtaken: Whether more urgent work waits.
    """
    is_quick, costs = engine.is_quick_to_call, engine.costs
    longest_s = bounds.preempt_after_s
    # Who watches what comes in need not stop to look.
    if is_quick and watched >= 0 and not is_overtaken:
        longest_s = max(longest_s, bounds.inline_s / pace)
    steps = min(launch.steps_left, costs.most_steps(longest_s, launch.part_rows, launch.horizon))
    is_short = pace * costs.launch_s(launch.part_rows, steps) <= bounds.inline_s
    return steps, is_quick and is_short


def compute(
    launch: Launch, engine: EngineLike, steps: int, watched: int = -1
) -> tuple[int, Prediction | None]:
    """Begin a launch or go on with it; any thread.

    Args:
        launch: Begun if it is not yet.
        engine: Computes.
        steps: At most.
        watched: When this file is readable, a CPU stops early; -1: it does not.

    Returns:
        How many steps were taken, and the prediction once it is complete.

    Raises:
        BadOutputError: The engine returned arrays of the wrong shape.
    """
    if launch.running is None:
        launch.running = engine.begin(*gather(launch), launch.part_rows)
    taken = launch.running.advance(steps, watched)
    if not launch.running.is_complete:
        return taken, None
    return taken, checked(launch.running.result(), launch)
