"""The spec of the bundled model, which knows how big everybody is, and the table of their kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from models.highway import (
    ACTION,
    CONVENTIONS,
    EGO,
    KINEMATICS,
    NEIGHBOUR_COUNT,
    NEIGHBOUR_PARTS,
    STEP_S,
    VEHICLE_LENGTH_M,
    VEHICLE_WIDTH_M,
    convention,
    one_line,
)
from models.spec import (
    FORWARD_RIGHT_DOWN,
    Example,
    Feature,
    Geometry,
    RoadUser,
    Saturation,
    Slot,
    Spec,
)

ROAD_USERS = (
    RoadUser("pedestrian", (0.3, 0.8), (0.3, 0.8)),
    RoadUser("bicycle", (1.5, 2.0), (0.5, 0.8)),
    RoadUser("motorcycle", (1.9, 2.5), (0.7, 1.0)),
    RoadUser("car", (3.5, 5.3), (1.6, 2.1)),
    RoadUser("van", (5.0, 7.0), (1.9, 2.3)),
    RoadUser("bus", (9.0, 18.0), (2.4, 2.6)),
    RoadUser("truck", (7.0, 12.0), (2.3, 2.6)),
    RoadUser("truck with trailer", (12.0, 19.0), (2.5, 2.6)),
)
"""Kinds in the order of their numbers in recordings. A long vehicle is one rectangle: that it bends
is left out."""

LONGEST_M, WIDEST_M = 30.0, 4.0
EDGE_LIMIT_M = 16.0
"""Edges farther away are taken for so far: beyond, they decide nothing within 0.8 s."""

EXTRAS = ("neighbour_1_acceleration", "neighbour_2_acceleration")
"""What the state has beside sizes, places and speeds: names of any parts of any slots."""

_SIZE = {
    "length": ("m", 0.0, LONGEST_M, "length of its rectangle; 0: nobody is in the slot"),
    "width": ("m", 0.0, WIDEST_M, "width of its rectangle"),
}
_PARTS = {**_SIZE, **{part: NEIGHBOUR_PARTS[part] for part in ("dx", "dy", "heading", "speed")}}
_EXTRA_PARTS = ("acceleration", "yaw_rate")
_NAMES = tuple(f"neighbour_{i}" for i in range(1, NEIGHBOUR_COUNT + 1))


def road_users_spec(extras: Sequence[str] = EXTRAS) -> Spec:
    """Return the spec of an ego among its four nearest road users, all of known sizes.

    With the usual extras it is that of the bundled model. The state has 8 ego features, 4 x 6
    neighbour features, and the extras. Frames and signs are those of `models.highway`; a slot is
    empty where its length is 0.

    Args:
        extras: Names of further features, in order: `neighbour_1_acceleration`,
            `neighbour_2_yaw_rate` and so on.

    Raises:
        ValueError: An extra is none.
    """
    neighbours = [
        Feature(f"{name}_{part}", *meaning) for name in _NAMES for part, meaning in _PARTS.items()
    ]
    return Spec(
        name="road-users",
        dt_s=STEP_S,
        state=(*EGO, *_OWN_SIZE, *neighbours, *map(_extra, extras)),
        action=ACTION,
        geometry=Geometry(
            length_m=VEHICLE_LENGTH_M,
            width_m=VEHICLE_WIDTH_M,
            slots=tuple(_slot(name, extras) for name in _NAMES),
            edges=("left_edge", "right_edge"),
            length="length",
            width="width",
        ),
        kinematics=replace(KINEMATICS, length="length"),
        frame=FORWARD_RIGHT_DOWN,
        conventions=_CONVENTIONS,
        example=_example(extras),
        saturations=tuple(
            Saturation(
                name,
                None,
                EDGE_LIMIT_M,
                "an edge that far away decides nothing within the evaluated horizon",
            )
            for name in ("left_edge", "right_edge")
        ),
        road_users=ROAD_USERS,
    )


_OWN_SIZE = (
    Feature("length", "m", 0.0, LONGEST_M, "length of the ego's rectangle, its trailer included"),
    Feature("width", "m", 0.0, WIDEST_M, "width of the ego's rectangle"),
)


def _extra(name: str) -> Feature:
    slot, part = name[: len(_NAMES[0])], name[len(_NAMES[0]) + 1 :]
    if slot not in _NAMES or part not in _EXTRA_PARTS:
        raise ValueError(
            f"the extra feature {name!r} must be one of {_NAMES[0]} to {_NAMES[-1]} with "
            f"{' or '.join(f'_{part}' for part in _EXTRA_PARTS)}"
        )
    return Feature(f"{slot}_{part}", *NEIGHBOUR_PARTS[part])


def _slot(name: str, extras: Sequence[str]) -> Slot:
    parts = [*_PARTS, *(x for x in _EXTRA_PARTS if f"{name}_{x}" in extras)]
    return Slot(**{part: f"{name}_{part}" for part in parts})


_CONVENTIONS = (
    convention(
        "frame",
        """
        Axes of the ego at the instant of the state: x forward, y to the right, angles clockwise
        seen from above (forward-right-down, as in SAE J670e). ISO 8855 and ROS (REP 103) have y
        to the left and angles counterclockwise: coming from there, turn the signs of
        lane_offset, sin_heading_error, curvature, of each dy, heading and yaw_rate (if there is
        one), and of steer. Distances to edges, sizes, speeds and accelerations along headings keep
        theirs.
        """,
    ),
    CONVENTIONS["drawing"],
    CONVENTIONS["time"],
    convention(
        "road",
        f"""
        The road is all lanes that run in the ego's direction, side by side; left_edge and
        right_edge are measured to the outer borders of these lanes, shoulders not included. Edges
        farther than {EDGE_LIMIT_M:g} m are taken for {EDGE_LIMIT_M:g} m: send what you measure, or
        {EDGE_LIMIT_M:g} m where there is no edge in sight. lane_offset, sin_heading_error and
        curvature are those of the lane whose centre line is closest.
        """,
    ),
    convention(
        "slots",
        f"""
        Of all road users, the {NEIGHBOUR_COUNT} whose rectangles are nearest to the ego's, in the
        order of the distances of their centres, nearest first, chosen anew for each state: nothing
        is kept between requests. Leave out those beyond 95 m, and a fifth one: no prediction sees
        them, so `safe` holds only as far as a fifth one is farther than these. An empty slot is
        zeros, length included, and may stand between others. Within a predicted sequence a slot
        stays the same road user.
        """,
    ),
    convention(
        "tracks",
        f"""
        An acceleration is the change of speed to an earlier frame of the same track, divided by
        the time between the two; training had {STEP_S} s and noise as trackers have it. For the
        first frame of a track, or if you do not know it, send 0. The model then does not see that
        a car ahead brakes. Slots without that feature are taken to keep their speed. If a tracker
        loses somebody who is probably still there, keep him in his slot and move him on by his
        last motion: a length of 0 says that nobody is there.
        """,
    ),
    convention(
        "sizes",
        """
        Everybody, the ego too, is a rectangle around his centre, not around the rear axle
        (base_link in ROS), nor a bumper. length and width are the whole ones, trailer, mirrors and
        loads included. Never send 0 for a length that you do not know: send that of the kind
        (`road_users`), rather too long than too short. What bends, as a truck with its trailer, is
        one straight rectangle; in a sharp turn its corners are elsewhere.
        """,
    ),
    convention(
        "steering",
        """
        wheel angle = steer x largest, largest = min(0.5 rad, atan(8 m/s^2 x L / max(v, 1 m/s)^2))
        with the ego's length L and v at the start of the step: a car of 5 m has the full 0.5 rad up
        to 8.6 m/s, above as much as 8 m/s^2 of grip allow. Kinematic bicycle with axles at the
        ego's ends (wheelbase L), the centre halfway: slip = atan(tan(angle) / 2), x += v
        cos(heading + slip) dt, y += v sin(heading + slip) dt, heading += v sin(slip) / (L / 2) x
        dt. So for a path of curvature k (1/m, to the right positive): slip = asin(k x L / 2), angle
        = atan(2 tan(slip)), steer = angle / largest. steer is no angle: 0.1 is a tenth of the
        largest.
        """,
    ),
    CONVENTIONS["pedals"],
    CONVENTIONS["reward"],
    CONVENTIONS["done"],
    convention(
        "limits",
        """
        What no state can hold, no verdict knows: a fifth road user, and whoever the tracker does
        not see; intentions, indicators and brake lights; the past, turn rates of others, and
        accelerations of the third and fourth; signals, signs and right of way; the road farther
        than its curvature 0.4 s ahead; that long vehicles bend; grip, weather, slope and load; how
        good the tracks are.
        """,
    ),
)


def _example(extras: Sequence[str]) -> Example:
    """Return a scene in which left and right, and long and short, can be told apart."""
    brakes = f"{_NAMES[0]}_acceleration"
    return Example(
        scene=one_line(
            f"""
        A straight road of three lanes, 4 m each. The ego, a car of 4.8 x 1.9 m, drives 25 m/s in
        the middle lane, parallel to it, 0.3 m right of its centre: 6.3 m to the left edge, 5.7 m to
        the right one. In the left lane a car of 4.5 x 1.8 m, its centre 12 m ahead, 4.3 m to the
        left, with 27 m/s, points 0.02 rad to the right{
                " and slows down by 0.5 m/s^2" if brakes in extras else ""
            }. In the right lane a truck with its trailer, 16.5 x 2.55 m, its centre 18 m behind,
        3.7 m to the right, with 24 m/s. In the ego's lane a motorcycle of 2.2 x 0.8 m, 35 m ahead,
        0.3 m to the left, with 24 m/s. The fourth slot is empty. The ego steers straight on and
        touches no pedal.
        """
        ),
        state=(
            *(25.0, 0.3, 0.0, 6.3, 5.7, 0.0, 4.8, 1.9),
            *(4.5, 1.8, 12.0, -4.3, 0.02, 27.0),
            *(16.5, 2.55, -18.0, 3.7, 0.0, 24.0),
            *(2.2, 0.8, 35.0, -0.3, 0.0, 24.0),
            *(0.0,) * len(_PARTS),
            *(-0.5 if name == brakes else 0.0 for name in extras),
        ),
        action=(0.0, 0.0, 0.0),
    )
