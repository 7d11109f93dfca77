"""The spec of models that take everybody for a car of one size, and constants of all layouts."""

from __future__ import annotations

from models.spec import (
    FORWARD_RIGHT_DOWN,
    Convention,
    Example,
    Feature,
    Geometry,
    Kinematics,
    Slot,
    Spec,
)

NEIGHBOUR_COUNT = 4
VEHICLE_LENGTH_M = 5.0
VEHICLE_WIDTH_M = 2.0
SENSOR_RANGE_M = 100.0
STEP_S = 0.05


EGO = (
    Feature("speed", "m/s", 0.0, 45.0, "forward speed; the car does not reverse"),
    Feature(
        "lane_offset",
        "m",
        -12.0,
        12.0,
        "from the closest lane's centre to the ego's centre, positive to the right",
    ),
    Feature(
        "sin_heading_error",
        "1",
        -1.0,
        1.0,
        "sine of the ego's heading minus the lane's, positive if the ego points to the right",
    ),
    Feature(
        "left_edge", "m", -12.0, 40.0, "the ego's centre to the left road edge, negative beyond"
    ),
    Feature(
        "right_edge", "m", -12.0, 40.0, "the ego's centre to the right road edge, negative beyond"
    ),
    Feature(
        "curvature",
        "1/m",
        -0.2,
        0.2,
        "of the lane where the ego is in 0.4 s at present speed, positive if it bends to the right",
    ),
)
"""Features of the ego that its kinematics move."""

ACTION = (
    Feature(
        "steer",
        "1",
        -1.0,
        1.0,
        "share of the largest wheel angle at this speed, positive to the right",
    ),
    Feature("throttle", "1", 0.0, 1.0, "share of full acceleration, 5 m/s^2"),
    Feature("brake", "1", 0.0, 1.0, "share of full braking, 8 m/s^2"),
)

KINEMATICS = Kinematics(
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
)

_REACH_M = 1.5 * SENSOR_RANGE_M
NEIGHBOUR_PARTS: dict[str, tuple[str, float, float, str]] = {
    "presence": ("1", 0.0, 1.0, "1 if the slot holds a vehicle, else 0"),
    "dx": ("m", -_REACH_M, _REACH_M, "centre to centre along the ego's heading, positive ahead"),
    "dy": (
        "m",
        -_REACH_M,
        _REACH_M,
        "centre to centre across the ego's heading, positive to the right",
    ),
    "heading": (
        "rad",
        -6.3,
        6.3,
        "its heading minus the ego's in [-pi, pi), positive clockwise (to the right)",
    ),
    "speed": ("m/s", 0.0, 45.0, "along its heading, over ground, not relative to the ego"),
    "acceleration": ("m/s^2", -12.0, 12.0, "change of that speed, positive if faster"),
    "yaw_rate": (
        "rad/s",
        -4.0,
        4.0,
        "turn rate of its heading over ground, positive clockwise (to the right)",
    ),
}
"""Unit, smallest and largest value, and meaning of a neighbour's features."""


def highway_spec() -> Spec:
    """Return the spec of a car among its four nearest neighbours, all of one size.

    It is for imported weights and older checkpoints: the bundled model has that of
    `models.road_users`. The state has 6 ego features and 4 x 7 neighbour features. Positions and
    headings of neighbours are in the ego frame of the same instant: x forward, y to the right of
    travel (the simulator's y axis points down). Absent neighbours are all zeros. A relative heading
    may leave [-pi, pi) within a predicted sequence: it does not jump.
    """
    names = [f"neighbour_{i}" for i in range(1, NEIGHBOUR_COUNT + 1)]
    neighbours = [
        Feature(f"{name}_{part}", *meaning)
        for name in names
        for part, meaning in NEIGHBOUR_PARTS.items()
    ]
    return Spec(
        name="highway",
        dt_s=STEP_S,
        state=(*EGO, *neighbours),
        action=ACTION,
        geometry=Geometry(
            length_m=VEHICLE_LENGTH_M,
            width_m=VEHICLE_WIDTH_M,
            slots=tuple(Slot(**{x: f"{name}_{x}" for x in NEIGHBOUR_PARTS}) for name in names),
            edges=("left_edge", "right_edge"),
        ),
        kinematics=KINEMATICS,
        frame=FORWARD_RIGHT_DOWN,
        conventions=tuple(CONVENTIONS.values()),
        example=_example(),
    )


def one_line(text: str) -> str:
    """Return a text without its line breaks and indents."""
    return " ".join(text.split())


def convention(about: str, text: str) -> Convention:
    """Return a convention whose text is one line."""
    return Convention(about, one_line(text))


_CONVENTIONS = (
    convention(
        "frame",
        """
        Axes of the ego at the instant of the state: x forward, y to the right, angles clockwise
        seen from above (forward-right-down, as in SAE J670e). ISO 8855 and ROS (REP 103) have y
        to the left and angles counterclockwise: coming from there, turn the signs of
        lane_offset, sin_heading_error, curvature, of each dy, heading and yaw_rate, and of
        steer. Distances to edges, speeds and accelerations along headings keep theirs.
        """,
    ),
    Convention(
        "drawing",
        "\n".join(
            (
                "left edge       x: ahead, dx > 0      right edge",
                "    |                  ^                  |",
                "    |                  |  ) clockwise:    |",
                "    |                  |  v heading > 0,  |",
                "    |               +--|--+  steer > 0    |",
                "    |               |  |  |               |",
                "    |               | ego---------> y: to the right, dy > 0",
                "    |               |     |               |",
                "    |               +-----+               |",
                "    |<-- left_edge --->|<-- right_edge -->|",
            )
        ),
    ),
    convention(
        "time",
        f"""
        actions[k] is held from k to k + 1 steps of {STEP_S} s after the state. A plan in steps
        of another length must be sampled anew, or it would be judged over another time: of one
        in steps of 0.1 s send each action twice. The state is that of now: move older
        measurements on to the present first, yourself and the others.
        """,
    ),
    convention(
        "road",
        """
        The road is all lanes that run in the ego's direction, side by side; left_edge and
        right_edge are measured to the outer borders of these lanes, shoulders not included.
        lane_offset, sin_heading_error and curvature are those of the lane whose centre line is
        closest. Two-way roads were not trained on.
        """,
    ),
    convention(
        "slots",
        f"""
        The {NEIGHBOUR_COUNT} nearest road users, by distance of centres, nearest first, chosen
        anew for each state: nothing is kept between requests. Leave out those beyond 95 m, and
        a fifth one: no prediction sees them. An empty slot is zeros, presence included, and may
        stand between others. Within a predicted sequence a slot stays the same vehicle.
        """,
    ),
    convention(
        "tracks",
        f"""
        Accelerations and turn rates are differences to an earlier frame of the same track,
        divided by the time between the two; training had {STEP_S} s. For the first frame of a
        track, or if you do not know them, send 0: constant speed and heading. The model then
        does not see that a car ahead brakes, and a crash with it may be `safe`. If a tracker
        loses a vehicle that is probably still there, keep it in its slot and move it on by its
        last motion: presence 0 says that nobody is there. If it comes back by another id, its
        first frame has 0 for both.
        """,
    ),
    convention(
        "sizes",
        f"""
        Every vehicle, the ego too, is taken for a rectangle {VEHICLE_LENGTH_M:g} m long and
        {VEHICLE_WIDTH_M:g} m wide around its centre: not around the rear axle (base_link in
        ROS), nor a bumper. No other size can be sent, so `safe` may be wrong beside a truck, a
        trailer or a person on foot. A long vehicle is better sent as a rectangle at its near
        end, or in two slots with centres 5 m apart.
        """,
    ),
    convention(
        "steering",
        """
        wheel angle = steer x largest, largest = min(0.5 rad, atan(8 m/s^2 x 5 m / max(v, 1
        m/s)^2)) with v at the start of the step: up to 8.6 m/s the full 0.5 rad, above as much
        as 8 m/s^2 of grip allow. Kinematic bicycle with axles at the car's ends (wheelbase 5
        m), the centre halfway: slip = atan(tan(angle) / 2), x += v cos(heading + slip) dt, y +=
        v sin(heading + slip) dt, heading += v sin(slip) / 2.5 m x dt. So for a path of
        curvature k (1/m, to the right positive): slip = asin(2.5 m x k), angle = atan(2
        tan(slip)), steer = angle / largest. steer is no angle: 0.1 is a tenth of the largest.
        """,
    ),
    convention(
        "pedals",
        """
        acceleration = 5 m/s^2 x throttle - 8 m/s^2 x brake; both at once add up so. They are
        shares, not m/s^2. The speed stays from 0 to 40 m/s: no reverse. Without pedals the
        speed stays: there is no drag.
        """,
    ),
    convention(
        "reward",
        """
        -1 if the step ends in a crash or off the road, else 0.6 x clip(speed / 30 m/s, 0, 1) +
        0.4 x (1 - min(|lane_offset| / 2 m, 1)), both at the step's end. Learned: a prediction
        of that.
        """,
    ),
    convention(
        "done",
        """
        The ego's rectangle overlaps another (crash), or its centre passes a road edge (off
        road). A crash of others is no end.
        """,
    ),
)

CONVENTIONS = {each.about: each for each in _CONVENTIONS}
"""By what they are about."""


def _example() -> Example:
    """Return a scene in which left and right, and both turns, can be told apart."""
    nobody = (0.0,) * 7
    return Example(
        scene=one_line(
            """
        A straight road of three lanes, 4 m each. The ego drives 25 m/s in the middle lane,
        parallel to it, 0.3 m right of its centre: 6.3 m to the left edge, 5.7 m to the right
        one. In the left lane a car 12 m ahead, 4.3 m to the left, with 27 m/s, points 0.02 rad
        to the right. In the right lane a car 18 m behind, 3.7 m to the right, with 24 m/s. In
        the ego's lane a car 35 m ahead, 0.3 m to the left, with 24 m/s, slows down by 0.5
        m/s^2. The fourth slot is empty. The ego steers straight on and touches no pedal.
        """
        ),
        state=(
            *(25.0, 0.3, 0.0, 6.3, 5.7, 0.0),
            *(1.0, 12.0, -4.3, 0.02, 27.0, 0.0, 0.0),
            *(1.0, -18.0, 3.7, 0.0, 24.0, 0.0, 0.0),
            *(1.0, 35.0, -0.3, 0.0, 24.0, -0.5, 0.0),
            *nobody,
        ),
        action=(0.0, 0.0, 0.0),
    )
