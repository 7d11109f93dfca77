"""From what a planner knows to a state: against the simulator's own, by hand, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.highway import NEIGHBOUR_COUNT, highway_spec
from models.safety.rectangles import separations
from tests.test_client.scenes import (
    EGO,
    Floats,
    at,
    cars_document,
    document,
    document_of,
    ego_with,
    highway_lines,
    motorway,
    named,
    racetrack_lines,
    sized_names,
    straight,
)
from training.simulation.behaviours import BEHAVIOURS, make_behaviour
from training.simulation.fleets import FLEETS, spec_of
from training.simulation.simulator import Simulation
from world_model_client import InvalidInputError
from world_model_client.scene import (
    FORWARD_RIGHT_DOWN,
    ISO8855,
    TYPICAL_SIZES_M,
    Built,
    Ego,
    Layout,
    Road,
    RoadUser,
    StateBuilder,
    assemble,
    centre_of,
    filtered,
    gap,
    moved_to_show,
)

ROAD = motorway()
CARS = [feature.name for feature in highway_spec().state]
SIZED = sized_names()
RACETRACK = racetrack_lines(0.02)


def state_of(
    users: list[RoadUser], ego: Ego = EGO, names: list[str] | None = None, **options: Any
) -> tuple[dict[str, float], Built]:
    """Return the features by name, and all that was built."""
    model = cars_document() if names is None else document(names)
    built = StateBuilder(model, **options).update(0.0, ego, users, ROAD)
    return named(names or CARS, built.state), built


def lines_of(world: Simulation) -> tuple[list[Floats], Floats, Floats]:
    if world.environment == "racetrack":
        return RACETRACK
    return highway_lines(len(world.road.network.graph["0"]["1"]))


@pytest.mark.parametrize("mirrors", [False, True], ids=["down", "iso8855"])
@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize(
    ("environment", "seed"), [("highway", 3), ("highway", 8), ("racetrack", 1), ("racetrack", 5)]
)
def test_states_are_those_of_the_simulator(
    environment: str, seed: int, fleet: str, mirrors: bool
) -> None:
    """With and without sizes, whatever the signs of what is given."""
    world = Simulation(seed, environment, fleet=fleet)
    sign = -1.0 if mirrors else 1.0
    lanes, left, right = lines_of(world)
    turned = np.array([1.0, sign])
    road = Road([lane * turned for lane in lanes], left * turned, right * turned)
    frame = ISO8855 if mirrors else FORWARD_RIGHT_DOWN
    spec = spec_of(fleet)
    builder = StateBuilder(document_of(spec), frame, filter_s=0, coast_s=0, range_m=100)
    driver = make_behaviour(BEHAVIOURS[0], world.rng.spawn(1)[0], world.pace)

    for k in range(60):
        rows = np.hstack([world.poses * [1, sign, sign, 1], world.sizes]).tolist()
        users = [RoadUser(i, *row) for i, row in enumerate(rows[1:])]
        built = builder.update(k * 0.05, Ego(*rows[0]), users, road)

        np.testing.assert_allclose(built.state, world.state(spec), atol=1e-5)
        assert built.notes == ()
        world.step(driver.action(world.ego))
        if world.cause:
            break
    assert k > 20


def test_the_layout_of_34_features_with_sizes_is_filled() -> None:
    users = [
        at("truck", 30, 4, 22.0, length=16.5, width=2.55, kind="truck with trailer", heading=0.1),
        at("bike", 12, -2.5, 5.0, length=1.8, width=0.7, kind="bicycle", acceleration=-1.0),
    ]
    state, built = state_of(users, Ego(0, 0.5, 0.0, 20, 4.5, 1.9), SIZED)

    assert len(built.state) == 34
    assert built.slots == ("bike", "truck", None, None)
    expected = {
        "speed": 20,
        "lane_offset": -0.5,
        "sin_heading_error": 0,
        "left_edge": 9.5,
        "right_edge": 2.5,
        "curvature": 0,
        "length": 4.5,
        "width": 1.9,
        "neighbour_1_length": 1.8,
        "neighbour_1_width": 0.7,
        "neighbour_1_dx": 12,
        "neighbour_1_dy": 3,
        "neighbour_1_speed": 5,
        "neighbour_1_acceleration": -1,
        "neighbour_2_length": 16.5,
        "neighbour_2_width": 2.55,
        "neighbour_2_dx": 30,
        "neighbour_2_dy": -3.5,
        "neighbour_2_heading": -0.1,
        "neighbour_2_speed": 22,
    }
    np.testing.assert_allclose(
        list(state.values()), [expected.get(name, 0.0) for name in SIZED], atol=1e-6
    )
    assert built.notes == ()


def test_the_ends_of_long_vehicles_count_where_sizes_do() -> None:
    truck = at("truck", 0.0, 4.0, length=18.0, width=2.5)
    beside = [at(i, x, 0, length=4.5) for i, x in enumerate((7.5, -7.5, 12.5, -12.5))]
    far = at("far", 15.0, 4.0 + 4.0, length=18.0, width=2.5)

    _, built = state_of([*beside, far, truck], names=SIZED)

    # The fifth by its centre, 17 m, but its end is nearer than the gaps of 8 m ahead and behind.
    assert built.slots[0] == "truck"
    assert "far" in built.slots
    assert [(left.id, left.reason, left.gap_m) for left in built.left_out] == [
        (2, "no_slot", 7.75),
        (3, "no_slot", 7.75),
    ]
    distances = [
        np.hypot(u.x, u.y) for id_ in built.slots for u in [*beside, far, truck] if u.id == id_
    ]
    assert distances == sorted(distances)


def test_the_nearest_four_are_taken_and_the_others_named() -> None:
    users = [at(i, 10.0 * i + 10, 0) for i in range(12)]

    state, built = state_of(users[::-1])

    assert built.slots == (0, 1, 2, 3)
    assert [state[f"neighbour_{i}_dx"] for i in (1, 2, 3, 4)] == [10, 20, 30, 40]
    reasons = {left.id: left.reason for left in built.left_out}
    assert reasons == {
        **dict.fromkeys(range(4, 9), "no_slot"),
        9: "beyond_range",
        **dict.fromkeys((10, 11), "beyond_range"),
    }
    assert "'" not in built.left_out[0].text
    assert built.left_out[-1].text.endswith("apart: others are in all slots")
    assert built.is_whole


@pytest.mark.parametrize(
    ("fifth", "matters"),
    [
        (at(5, 12, 0), False),
        (at(5, 40, 0, 0.0), False),
        (at(5, 6.2, 0), True),
        (at(5, -18, 0, 40.0), True),
        (at(5, 20, 3.6, heading=np.pi), False),
        (at(5, 20, 0.5, heading=np.pi), True),
    ],
    ids=["far", "far and slow", "near", "fast", "passing", "oncoming"],
)
def test_who_does_not_fit_and_could_matter_is_told(fifth: RoadUser, matters: bool) -> None:
    users = [at(1, 5.5, 0), at(2, -5.5, 0), at(3, 0, 4), at(4, -0.5, -4), fifth]
    if fifth.x == -18:
        users = [at(1, 6, 0), at(2, 5.8, 4), at(3, 0, 4), at(4, -5.5, 4), fifth]

    _, built = state_of(users)

    assert [left.id for left in built.left_out] == [5]
    assert built.left_out[0].could_matter == matters
    assert built.is_whole != matters


FAULTY = {
    "x": (at(1, np.nan, 0), "not_finite", "its x is nan, not a finite number"),
    "y": (at(1, 10, -np.inf), "not_finite", "its y is -inf"),
    "heading": (at(1, 10, 0, heading=np.nan), "not_finite", "its heading is nan"),
    "speed": (at(1, 10, 0, 1e300), "not_finite", "its speed is 1e"),
    "huge": (at(1, 10**400, 0), "not_finite", "its x is 1000"),
    "size": (
        at(1, 10, 0, length=0.0, kind="tram"),
        "no_size",
        "its size is 0.0 x 2.0 m, and sizes",
    ),
    "no size": (at(1, 10, 0, width=None, kind="tram"), "no_size", "its size is 5.0 x None m"),
    "size NaN": (at(1, 10, 0, width=np.nan, kind="?"), "no_size", "its size is 5.0 x nan m"),
}


@pytest.mark.parametrize("case", FAULTY)
def test_who_has_no_place_or_no_size_is_left_out_and_could_matter(case: str) -> None:
    user, reason, text = FAULTY[case]

    state, built = state_of([user, at(2, 30, 0)])

    assert built.slots == (2, None, None, None)
    (left,) = built.left_out
    assert (left.id, left.reason, left.could_matter) == (1, reason, True)
    assert left.text.startswith(f"1: {text}")
    assert not built.is_whole
    assert np.isfinite(list(state.values())).all()


@pytest.mark.parametrize("kind", TYPICAL_SIZES_M)
@pytest.mark.parametrize("given", [None, 0.0, np.nan, -1.0])
def test_sizes_that_are_not_known_are_those_of_the_kind(kind: str, given: float | None) -> None:
    state, built = state_of([at(1, 30, 0, length=given, kind=kind)], names=SIZED)

    assert state["neighbour_1_length"] == pytest.approx(TYPICAL_SIZES_M[kind][0])
    assert state["neighbour_1_width"] == 2
    texts = [note.text for note in built.notes]
    assert len(texts) == (given is not None)
    assert all(text.endswith(f"m, as a {kind}") for text in texts)


def test_who_overlaps_the_ego_stays_in_the_state() -> None:
    _, built = state_of([at(1, 4.5, 0)])

    assert built.slots[0] == 1
    (note,) = built.notes
    assert note.about == 1
    assert note.text == "overlaps the ego by 0.50 m: the verdict is unknown"


def test_who_reverses_is_turned_around_and_who_stands_stands() -> None:
    users = [at(1, 20, 0, -3.0, acceleration=-1.0), at(2, 30, 0, -0.3)]
    state, _ = state_of(users, ego_with(speed=-0.2))

    assert state["speed"] == 0
    assert state["neighbour_1_speed"] == 3
    assert state["neighbour_1_acceleration"] == 1
    assert abs(state["neighbour_1_heading"]) == pytest.approx(np.pi)
    assert state["neighbour_2_speed"] == 0
    assert state["neighbour_2_heading"] == 0


def test_an_ego_that_reverses_or_drives_against_the_traffic_is_noted() -> None:
    state, built = state_of([], ego_with(speed=-2.0, heading=3.0))

    assert state["speed"] == -2
    assert [note.about for note in built.notes] == ["sin_heading_error", "speed"]


@pytest.mark.parametrize("turns", [0, 1, -7])
def test_headings_are_wrapped(turns: int) -> None:
    turn = 2 * np.pi * turns
    users = [at(1, 20, 0, heading=3.1 + turn), at(2, 30, 0, heading=-3.1)]
    state, _ = state_of(users, ego_with(heading=-0.1))

    assert state["neighbour_1_heading"] == pytest.approx(2 * np.pi - 3.2, abs=1e-5)
    assert state["neighbour_2_heading"] == pytest.approx(3.0, abs=1e-5)


def test_edges_saturate_where_the_model_says_or_at_16_m() -> None:
    wide = Road([straight(4.0 * i) for i in range(8)], straight(30.0), straight(-2.0))
    declared = {"saturations": [{"feature": "left_edge", "low": None, "high": 12.0, "reason": ""}]}
    trained = cars_document()
    for feature in trained["features"]["state"]:
        feature["trained_high"] = {"right_edge": 14.0}.get(feature["name"], 50.0)

    for model, left, right in (
        (cars_document(), 16, 16),
        (cars_document(**declared), 12, 16),
        (trained, 16, 14),
    ):
        for y in (0.0, 28.0):
            built = StateBuilder(model).update(0.0, ego_with(y=y), [], wide)
            found = named(CARS, built.state)
            assert (found["left_edge"], found["right_edge"]) == (
                min(30 - y, left),
                min(y + 2, right),
            )
            assert built.notes == ()


def test_an_unknown_edge_is_sent_as_far_away_and_noted() -> None:
    built = StateBuilder(cars_document()).update(
        0.0, EGO, [], Road([straight(0)], None, straight(-2))
    )

    assert named(CARS, built.state)["left_edge"] == 16
    assert [(note.about, note.text[:24]) for note in built.notes] == [
        ("left_edge", "not given: sent as 16 m,")
    ]


def test_rates_that_no_vehicle_has_are_sent_as_the_model_knows_them() -> None:
    model = cars_document()
    for feature in model["features"]["state"]:
        if feature["name"].endswith("acceleration"):
            feature |= {"trained_low": -8.5, "trained_high": 4.5}
    user = at(1, 30, 0, acceleration=40.0, yaw_rate=9.0)

    built = StateBuilder(model).update(0.0, EGO, [user], ROAD)

    state = named(CARS, built.state)
    assert (state["neighbour_1_acceleration"], state["neighbour_1_yaw_rate"]) == (4.5, -4.0)
    assert [note.text for note in built.notes] == [
        "its acceleration is beyond what the model knows: sent as 4.5",
        "its yaw_rate is beyond what the model knows: sent as -4",
    ]


def test_kinds_that_the_model_does_not_know_are_noted_also_when_they_are_lost() -> None:
    kinds = [{"kind": kind, "length_m": [1, 2], "width_m": [1, 2]} for kind in ("car", "bus")]
    builder = StateBuilder(document(SIZED, road_users=kinds))

    for time_s, users in ((0.0, [at(1, 30, 0, kind="tram"), at(2, 40, 0)]), (0.05, [])):
        built = builder.update(time_s, EGO, users, ROAD)
        assert [(note.about, note.text) for note in built.notes] == [
            (1, "the model does not know the kind 'tram' (known: bus, car)")
        ]


SIZES = st.tuples(st.floats(0.3, 19), st.floats(0.3, 2.6))


@settings(max_examples=200, deadline=None)
@given(st.floats(-60, 60), st.floats(-12, 12), st.sampled_from([0.0, np.pi]), SIZES, SIZES)
def test_a_model_without_sizes_is_shown_the_true_gaps(
    dx: float, dy: float, heading: float, mine: Any, theirs: Any
) -> None:
    x, y, angle = (np.array([value]) for value in (dx, dy, heading))

    shown = moved_to_show(x, y, angle, mine, theirs, ((5.0, 2.0), (5.0, 2.0)))

    true = gap(x, y, angle, mine, theirs)[0]
    sent = gap(*shown, angle, (5.0, 2.0), (5.0, 2.0))[0]
    assert sent == pytest.approx(true, abs=1e-9) if true > 0 else sent <= 1e-9
    assert np.sign(shown[0]) == np.sign(dx)


@settings(max_examples=100, deadline=None)
@given(st.floats(-9, 9), st.floats(-9, 9), st.floats(-4, 4), SIZES, SIZES)
def test_gaps_are_exact_in_sign_and_never_above_the_distance(
    dx: float, dy: float, heading: float, mine: Any, theirs: Any
) -> None:
    found = float(gap(dx, dy, heading, mine, theirs))

    shares = np.linspace(-0.5, 0.5, 61)
    grid = np.stack(np.meshgrid(shares, shares), axis=-1).reshape(-1, 2)
    cos, sin = np.cos(heading), np.sin(heading)
    points = grid * theirs @ np.array([[cos, sin], [-sin, cos]]) + [dx, dy]
    outside = np.maximum(np.abs(points) - np.array(mine) / 2, 0)
    nearest = np.hypot(*outside.T).min()
    if nearest == 0:
        assert found <= 1e-9
    assert found <= nearest + 1e-9
    axes = separations(dx, dy, cos, sin, 5.0, 2.0)
    assert (float(gap(dx, dy, heading, (5, 2), (5, 2))) < 0) == (max(axes) < 0)


def test_a_truck_is_moved_to_a_model_without_sizes_and_it_is_said() -> None:
    state, built = state_of([at(1, 30.0, 0, length=18.0, width=2.6)], ego_with(length=4.0))

    # Bumper to bumper it is 30 - 9 - 2 = 19 m; of two rectangles of 5 m at 24 m it is the same.
    assert state["neighbour_1_dx"] == 24
    assert [(note.about, note.text[:42]) for note in built.notes] == [
        (1, "sent -6.00 m along and +0.00 m across the ")
    ]


def test_only_the_ego_is_moved_for_where_its_size_alone_is_missing() -> None:
    names = [name for name in SIZED if name not in ("length", "width")]
    state, _ = state_of([at(1, 30.0, 0, length=18.0)], ego_with(length=4.0), names)

    assert (state["neighbour_1_dx"], state["neighbour_1_length"]) == (30.5, 18)


@pytest.mark.parametrize("names", [CARS, SIZED], ids=["cars", "sized"])
def test_many_moments_at_once_are_the_same_states(names: list[str]) -> None:
    rng = np.random.default_rng(2)
    model = cars_document() if names is CARS else document(names)
    times = np.arange(30) * 0.05
    ego = np.stack([20 * times, rng.normal(2, 0.1, 30), rng.normal(0, 0.02, 30)], axis=1)
    ego = np.concatenate([ego, np.tile([20.0, 4.6, 1.9], (30, 1))], axis=1)
    others = rng.uniform([-90, -3, -3, 0, 0.5, 0.5], [90, 11, 3, 30, 12, 2.6], (7, 6))
    others = np.broadcast_to(others, (30, 7, 6)).copy()
    others[..., :4] += rng.normal(0, 0.1, (30, 7, 4))
    others[..., 3] = np.abs(others[..., 3])
    present = rng.random((30, 7)) < 0.8
    builder, live = StateBuilder(model, coast_s=0), []
    for i, time_s in enumerate(times.tolist()):
        rows = np.flatnonzero(present[i])
        users = [RoadUser(int(k), *others[i, k].tolist()) for k in rows]
        live.append(builder.update(time_s, Ego(*ego[i].tolist()), users, ROAD))

    motions = filtered(times, others[..., :4], present, 0.4)
    known = np.concatenate([motions[..., :4], others[..., 4:], motions[..., 4:]], axis=-1)
    known[~present] = np.nan
    made = assemble(builder.layout, ISO8855, ego, ROAD.locate(ego), known, present)

    np.testing.assert_array_equal(made.states, np.stack([built.state for built in live]))
    slots = [[k if k >= 0 else None for k in row] for row in made.columns.tolist()]
    assert slots == [list(built.slots) for built in live]
    assert made.gaps.shape == made.near.shape == present.shape


def test_no_moments_and_nobody_are_fine() -> None:
    layout = Layout.from_model(cars_document())
    ego = np.zeros((0, 6))
    made = assemble(
        layout, ISO8855, ego, ROAD.locate(ego), np.zeros((0, 0, 8)), np.zeros((0, 0), bool)
    )

    assert made.states.shape == (0, 34)
    assert state_of([])[1].slots == (None,) * NEIGHBOUR_COUNT


def update(builder: StateBuilder, **given: Any) -> Built:
    call = {"time_s": 0.0, "ego": EGO, "objects": [at(1, 30, 0)], "road": ROAD, **given}
    return builder.update(**call)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "time text": ({"time_s": "1"}, r"^time_s is '1' \(allowed: a finite number\)"),
    "time NaN": ({"time_s": np.nan}, "^time_s is nan"),
    "time yes": ({"time_s": True}, "^time_s is True"),
    "no ego": ({"ego": {"x": 1}}, r"^ego is \{'x': 1\} \(allowed: an Ego\)"),
    "ego NaN": ({"ego": ego_with(x=np.nan)}, r"^ego.x is nan \(allowed: a number from -1e"),
    "ego text": ({"ego": ego_with(speed="fast")}, "^ego.speed is 'fast'"),
    "ego huge": ({"ego": ego_with(y=10**400)}, "^ego.y is 1000"),
    "ego without length": (
        {"ego": ego_with(length=0.0)},
        r"^ego.length is 0.0 \(allowed: a number above 0, to 1000\)",
    ),
    "ego None": ({"ego": ego_with(width=None)}, "^ego.width is None"),
    "no objects": ({"objects": None}, r"^objects is None \(allowed: RoadUsers in a list"),
    "no road user": (
        {"objects": [at(1, 3, 0), (1, 2)]},
        r"^objects\[1\] is \(1, 2\) \(allowed: a R",
    ),
    "same id": (
        {"objects": [at("a", 9, 0), at("b", 20, 0), at("a", 30, 0)]},
        r"^objects\[0\] and objects\[2\] both have the id 'a' \(allowed: each id once\)",
    ),
    "id list": (
        {"objects": [at([1], 9, 0)]},
        r"^objects\[0\].id is \[1\] \(allowed: what can be ha",
    ),
    "kind": ({"objects": [at(1, 9, 0, kind=3)]}, r"^objects\[0\].kind is 3 \(allowed: text\)"),
    "text": (
        {"objects": [at("a", 9, 0, "12")]},
        r"^speed of the road user 'a' is '12' \(allowed: a n",
    ),
    "yes": ({"objects": [at("a", True, 0)]}, "^x of the road user 'a' is True"),
    "None": ({"objects": [at("a", 9, 0, None)]}, "^speed of the road user 'a' is None"),
    "decimal": ({"objects": [at(2, 9, Decimal(1))]}, r"^y of the road user 2 is Decimal\('1'\)"),
    "size text": (
        {"objects": [at(2, 9, 0, length="5")]},
        r"^length of the road user 2 is '5' \(allowed: a number or None\)",
    ),
    "no road": ({"road": [[0, 0], [1, 1]]}, r"^road is .* \(allowed: a Road\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_by_name_and_nothing_is_kept(case: str) -> None:
    given, message = REFUSED[case]
    builder = StateBuilder(cars_document())
    with pytest.raises(InvalidInputError, match=message) as caught:
        update(builder, **given)
    assert len(str(caught.value)) < 300

    assert update(builder).slots == (1, None, None, None)


def test_time_that_goes_back_is_refused_until_a_reset() -> None:
    builder = StateBuilder(cars_document())
    update(builder, time_s=5.0)
    for time_s in (5.0, 4.9):
        message = rf"^time_s is {time_s}, and that of the update before was 5.0 \(allowed: later t"
        with pytest.raises(InvalidInputError, match=message):
            update(builder, time_s=time_s)
    update(builder, time_s=5.1, objects=[at(1, 30, 0, 21.0)])

    builder.reset()

    built = update(builder, time_s=0.0, objects=[at(1, 30, 0, 25.0)])
    assert named(CARS, built.state)["neighbour_1_acceleration"] == 0


def test_real_numbers_of_any_type_are_taken() -> None:
    user = at("a", Fraction(61, 2), np.int8(4), np.float16(12.5), length=5, width=np.float32(2))
    state, built = state_of([user], ego_with(x=Fraction(1, 2), speed=np.int64(20)))

    assert (state["neighbour_1_dx"], state["neighbour_1_speed"]) == (30, 12.5)
    assert built.left_out == ()


def changed(**features: Any) -> Callable[[], dict[str, Any]]:
    """Return what makes the sized layout with some features under other names, or without them."""

    def make() -> dict[str, Any]:
        names = [features.get(name, name) for name in SIZED]
        return document([name for name in names if name is not None])

    return make


LAYOUTS: dict[str, tuple[Callable[[], Any], str]] = {
    "other": (
        lambda: document(["state_0", "state_1"]),
        r"^the model's state has a feature 'state_0', which the builder cannot fill \(allowed: sp",
    ),
    "none": (lambda: {}, r"^the model's document is \{\}, without names in features.state"),
    "list": (lambda: {"features": [1]}, "^the model's document is .*without names"),
    "text": (lambda: "model", "^the model's document is 'model', without names"),
    "empty": (lambda: document([]), "without names in features.state"),
    "frame": (
        lambda: {**cars_document(), "frame": None},
        "^frame of the model is None .allowed: iso8855 or forward-right-down",
    ),
    "no dx": (changed(neighbour_2_dx=None), "^the model's neighbour_2 lacks dx"),
    "no gate": (
        lambda: document([f"neighbour_1_{part}" for part in ("dx", "dy", "heading", "speed")]),
        r"^the model's neighbour_1 lacks presence \(or length\)",
    ),
    "numbers": (
        lambda: document([name.replace("_4_", "_6_") for name in SIZED]),
        r"^the model's neighbours have the numbers \[1, 2, 3, 6\]",
    ),
    "no width": (
        changed(width=None),
        "^the model's state has only one of length and width of the ego",
    ),
    "no widths": (changed(neighbour_3_width=None), "only one of length and width of neighbour_3"),
    "mixed": (
        changed(neighbour_2_length="neighbour_2_presence", neighbour_2_width=None),
        "^neighbour_2 differs from neighbour_1 in whether it has a length",
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_states_that_the_builder_cannot_fill_are_refused_by_name(case: str) -> None:
    make, message = LAYOUTS[case]
    with pytest.raises(InvalidInputError, match=message) as caught:
        StateBuilder(make())
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("frame", "ISO8855"),
        ("frame", None),
        ("filter_s", -0.1),
        ("filter_s", 1.5),
        ("filter_s", np.nan),
        ("coast_s", "0.5"),
        ("coast_s", 2),
        ("range_m", 0),
        ("range_m", np.inf),
    ],
)
def test_options_that_are_none_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"^{option} is .* \(allowed: "):
        StateBuilder(cars_document(), **{option: value})


@pytest.mark.parametrize("value", [np.nan, np.inf, "1"])
@pytest.mark.parametrize("bound", ["low", "high", "trained_low", "trained_high"])
def test_bounds_of_a_model_that_are_no_finite_numbers_are_refused(bound: str, value: Any) -> None:
    model = cars_document()
    model["features"]["state"][1][bound] = value
    with pytest.raises(InvalidInputError, match=rf"^{bound} of the model's lane_offset is "):
        StateBuilder(model)

    saturations = [{"feature": "speed", bound.removeprefix("trained_"): value}]
    with pytest.raises(InvalidInputError, match=r" of the model's speed is .* \(allowed: a finite"):
        StateBuilder(cars_document(saturations=saturations))


def test_the_horizon_is_that_of_the_model() -> None:
    thresholds = {"evaluated_horizon": 40}

    assert Layout.from_model(cars_document()).horizon_s == 0.8
    assert Layout.from_model(cars_document(thresholds=thresholds)).horizon_s == pytest.approx(2.0)


def test_a_model_in_iso_8855_is_sent_no_other_signs() -> None:
    model = {**cars_document(), "frame": ISO8855}
    built = StateBuilder(model).update(
        0.0, ego_with(y=0.5), [at(1, 30, 4, heading=0.1, yaw_rate=0.2)], ROAD
    )

    state = named(CARS, built.state)
    found = [
        state[name]
        for name in ("lane_offset", "neighbour_1_dy", "neighbour_1_heading", "neighbour_1_yaw_rate")
    ]
    np.testing.assert_allclose(found, [0.5, 3.5, 0.1, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("ahead_m", "x", "y"), [(-2.5, 10.0, 17.5), (2.5, 10.0, 22.5), (1.4, 10.0, 21.4)]
)
def test_centres_are_found_from_bumpers_and_axles(ahead_m: float, x: float, y: float) -> None:
    np.testing.assert_allclose(centre_of(10.0, 20.0, np.pi / 2, ahead_m), (x, y))


WILD = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(*[WILD] * 6), max_size=6), st.sampled_from([CARS, SIZED]))
def test_whatever_trackers_report_no_state_holds_what_is_no_number(
    rows: list[Any], names: list[str]
) -> None:
    model = cars_document() if names is CARS else document(names)
    builder = StateBuilder(model)
    for k in range(3):
        users = [RoadUser(i, *row) for i, row in enumerate(rows)]
        built = builder.update(k * 0.1, EGO, users[k:], ROAD)
        assert np.isfinite(built.state).all()
        there = {id_ for id_ in built.slots if id_ is not None}
        assert there | {left.id for left in built.left_out} >= {user.id for user in users[k:]}


def test_floats_are_the_models() -> None:
    assert state_of([])[1].state.dtype == np.float32


def test_the_users_rows_are_not_changed() -> None:
    rows: Floats = np.zeros((1, 2, 8))
    rows[..., 4:6] = 2.0
    before = rows.copy()
    ego = np.array([[0.0, 0, 0, 20, 5, 2]])
    assemble(
        Layout.from_model(cars_document()),
        ISO8855,
        ego,
        ROAD.locate(ego),
        rows,
        np.ones((1, 2), bool),
    )

    np.testing.assert_array_equal(rows, before)
