"""The spec of the bundled model, and its constants: sizes of cars, the sensor's range, the step."""

from __future__ import annotations

from models.spec import Feature, Geometry, Kinematics, Slot, Spec

NEIGHBOUR_COUNT = 4
VEHICLE_LENGTH_M = 5.0
VEHICLE_WIDTH_M = 2.0
SENSOR_RANGE_M = 100.0
STEP_S = 0.05


def highway_spec() -> Spec:
    """Return the spec of the bundled model: a car among its four nearest neighbours.

    The state has 6 ego features and 4 x 7 neighbour features. Positions and headings of
    neighbours are in the ego frame of the same instant: x forward, y to the right of travel (the
    simulator's y axis points down). Absent neighbours are all zeros. A relative heading may leave
    [-pi, pi) within a predicted sequence: it does not jump.
    """
    ego = (
        Feature("speed", "m/s", 0.0, 45.0, "forward speed"),
        Feature("lane_offset", "m", -12.0, 12.0, "lateral offset from the closest lane's centre"),
        Feature("sin_heading_error", "1", -1.0, 1.0, "sine of heading minus lane heading"),
        Feature("left_edge", "m", -12.0, 40.0, "centre to left road edge; negative is off-road"),
        Feature("right_edge", "m", -12.0, 40.0, "centre to right road edge; negative is off-road"),
        Feature("curvature", "1/m", -0.2, 0.2, "lane curvature 0.4 s ahead at present speed"),
    )
    neighbours = [_neighbour(f"neighbour_{i}") for i in range(1, NEIGHBOUR_COUNT + 1)]
    return Spec(
        name="highway",
        dt_s=STEP_S,
        state=(*ego, *(feature for features, _ in neighbours for feature in features)),
        action=(
            Feature("steer", "1", -1.0, 1.0, "share of the steering that grip allows at speed"),
            Feature("throttle", "1", 0.0, 1.0, "share of full acceleration, 5 m/s^2"),
            Feature("brake", "1", 0.0, 1.0, "share of full braking, 8 m/s^2"),
        ),
        geometry=Geometry(
            length_m=VEHICLE_LENGTH_M,
            width_m=VEHICLE_WIDTH_M,
            slots=tuple(slot for _, slot in neighbours),
            edges=("left_edge", "right_edge"),
        ),
        kinematics=Kinematics(
            speed="speed",
            lane_offset="lane_offset",
            sin_heading_error="sin_heading_error",
            left_edge="left_edge",
            right_edge="right_edge",
            curvature="curvature",
            steer="steer",
            throttle="throttle",
            brake="brake",
            length_m=VEHICLE_LENGTH_M,
            full_throttle_mps2=5.0,
            full_brake_mps2=8.0,
            grip_mps2=8.0,
            max_steering_rad=0.5,
            max_speed_mps=40.0,
        ),
    )


def _neighbour(name: str) -> tuple[list[Feature], Slot]:
    """Return the features of one neighbour, and their places in its slot."""
    reach = 1.5 * SENSOR_RANGE_M
    parts = {
        "presence": ("1", 0.0, 1.0, "1 if the slot holds a vehicle, else 0"),
        "dx": ("m", -reach, reach, "centre to centre, forward"),
        "dy": ("m", -reach, reach, "centre to centre, sideways"),
        "heading": ("rad", -6.3, 6.3, "heading relative to the ego"),
        "speed": ("m/s", 0.0, 45.0, "speed along its heading"),
        "acceleration": ("m/s^2", -12.0, 12.0, "change of speed"),
        "yaw_rate": ("rad/s", -4.0, 4.0, "turn rate in the world"),
    }
    features = [Feature(f"{name}_{part}", *meaning) for part, meaning in parts.items()]
    return features, Slot(**{part: f"{name}_{part}" for part in parts})
