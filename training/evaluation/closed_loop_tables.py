"""What monitors prevent in the closed loop, as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.evaluation.tables import number, ranged, table
from training.simulation.simulator import CAUSES


def closed_loop_table(results: Mapping[str, Any]) -> str:
    """Return the results of `training.closed_loop.comparison.compare_monitors` as Markdown."""
    tuning, parts = results["tuning"], results["results"]
    thresholds = ", ".join(
        f"{number(judge['threshold'])} for {name}" for name, judge in tuning["judges"].items()
    )
    seen = {None: "as they are"}.get(results["tracks"], f"by the trackers {results['tracks']!r}")
    return "\n".join(
        [
            f"A reckless driver (aggressive 40 %, bursts 40 %, planners' sequences 20 %) on seeds "
            f"from {results['first_seed']} on, the same for all arms, in the fleet "
            f"{results['fleet']!r}. Monitors see road users {seen}; crashes are judged by the "
            "truth. A monitor sends one "
            f"`/safety-check` a step, {results['horizon_s']:g} s ahead, {results['cars_at_once']} "
            "cars at once, in SUMO one a process. brake: full brake in the lane unless holding the "
            "driver's action is "
            "safe. fallbacks: then the safest of 12 manoeuvres instead. shield: the driver's "
            "action passes while some manoeuvre after it is safe. physics, in the model's place: a "
            "bicycle and others that keep accelerations and turn rates, if the states have them, "
            "constant velocity: a bicycle and others that go straight on. Both get the same "
            "states, their alarm thresholds at 1 % false alarms. The "
            f"shields' thresholds ({thresholds}) are the strictest that override at most "
            f"{100 * tuning['limit']:g} % of the steps of {tuning['episodes']} other drives.\n",
            *(
                f"{_roads_title(source, part, results)}:\n\n{_arm_table(arms)}"
                for source, found in parts.items()
                for part, arms in found.items()
            ),
        ]
    )


def _roads_title(source: str, part: str, results: Mapping[str, Any]) -> str:
    if part == "unseen":
        unseen = results["unseen_roads"][source]
        return f"{source}, on the road that was never trained on ({unseen})"
    return f"{source}, on trained roads"


def _arm_table(arms: Mapping[str, Any]) -> str:
    rows = [
        [
            arm,
            ranged(x["terminated"], x["terminated_interval"], 3),
            " / ".join(number(x[cause]) for cause in CAUSES[1:]),
            ranged(x["prevented"], x["prevented_interval"], 2),
            ranged(x.get("above_physics"), x.get("above_physics_interval"), 3),
            ranged(x.get("above_velocity"), x.get("above_velocity_interval"), 3),
            number(x["per_km"], 2),
            number(x["mean_speed_mps"], 1),
            ranged(x["speed_kept"], x["speed_kept_interval"], 2),
            number(x["overridden"]),
            number(x["reward_per_episode"], 1),
            number(x["unknown"], 4),
            f"{number(x['p50_ms'], 0)} / {number(x['p99_ms'], 0)}",
        ]
        for arm, x in arms.items()
    ]
    episodes = next(iter(arms.values()))["episodes"]
    header = (
        f"{episodes} drives",
        "terminated",
        "crash / off the road",
        "prevented",
        "above physics",
        "above constant velocity",
        "per km",
        "mean speed, m/s",
        "speed kept",
        "steps overridden",
        "reward",
        "unknown",
        "p50 / p99, ms",
    )
    return table(header, rows)
