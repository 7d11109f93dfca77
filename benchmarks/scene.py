"""What one update of the client's `StateBuilder` costs: 30 road users, three lanes of 201 points.

    python -m benchmarks.scene

Prints the median of the processor's time, one core, for the bundled model's state.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from models.road_users import road_users_spec
from world_model_client.scene import Ego, Road, RoadUser, StateBuilder

STEP_S = 0.05
UPDATES = 200
ROAD_USERS = 30


def describe_model() -> dict[str, Any]:
    """Return what `GET /model` says of the bundled model's state."""
    spec = road_users_spec()
    features = {"state": [asdict(feature) for feature in spec.state]}
    return {"features": features, "frame": spec.frame, "dt_s": spec.dt_s}


def update_times_s() -> list[float]:
    """Return the processor's time of each update, in seconds."""
    rng = np.random.default_rng(0)
    x = np.linspace(-100, 100, 201)
    lanes = [np.stack([x, np.full(201, y)], axis=1) for y in (0.0, 4.0, 8.0)]
    road = Road(lanes, lanes[0] + [0, 10], lanes[0] - [0, 2])
    ego = Ego(x=0, y=0, heading=0, speed=20, length=5, width=2)
    places = rng.uniform([-90, -2], [90, 10], (ROAD_USERS, 2)).tolist()
    users = [
        RoadUser(k, x, y, heading=0, speed=20, length=5, width=2) for k, (x, y) in enumerate(places)
    ]
    builder = StateBuilder(describe_model())
    times_s = []
    for k in range(UPDATES):
        began = time.process_time()
        builder.update(k * STEP_S, ego, users, road)
        times_s.append(time.process_time() - began)
    return times_s


def main() -> None:
    """Measure and print."""
    print(describe_machine(), flush=True)
    print(f"StateBuilder.update: {1e3 * statistics.median(update_times_s()):.2f} ms")


if __name__ == "__main__":
    main()
