from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from models.checkpoint import CheckpointError, read_spec, read_spec_of
from models.highway import highway_spec
from models.road_users import road_users_spec
from models.spec import (
    Convention,
    Example,
    Feature,
    Geometry,
    RoadUser,
    Saturation,
    Slot,
    Spec,
    anonymous_spec,
)
from service.settings import PRETRAINED


@pytest.mark.parametrize("spec", [highway_spec(), road_users_spec()], ids=lambda s: s.name)
def test_our_specs_have_34_state_and_3_action_features(spec: Spec) -> None:
    assert (spec.state_dim, spec.action_dim, spec.dt_s) == (34, 3, 0.05)
    assert all(f.low < f.high and f.unit and f.meaning for f in (*spec.state, *spec.action))
    assert spec.geometry is not None
    assert len(spec.geometry.slots) == 4


@pytest.mark.parametrize(
    "spec", [highway_spec(), road_users_spec(), anonymous_spec(5, 2)], ids=lambda s: s.name
)
def test_a_spec_survives_json(spec: Spec) -> None:
    assert read_spec_of(json.loads(json.dumps(spec.to_json())), "it") == spec


def test_the_bundled_checkpoints_spec_is_read_and_written_to_the_byte() -> None:
    path = PRETRAINED / "spec.json"

    spec = read_spec(path)

    assert spec == road_users_spec()
    assert json.dumps(spec.to_json(), indent=1) + "\n" == path.read_text()


def test_signatures_stay_what_they_were() -> None:
    assert highway_spec().signature == "34x3-aaf42bb4"
    assert road_users_spec().signature == "34x3-2887ef71"


def test_what_a_slot_does_not_have_may_be_missing() -> None:
    document = highway_spec().to_json()
    slot = document["geometry"]["slots"][0]
    del slot["acceleration"], slot["yaw_rate"]

    read = read_spec_of(document, "it")

    assert read.geometry is not None
    first, second, *_ = read.geometry.slots
    assert (first.acceleration, first.yaw_rate, first.length) == (None, None, None)
    assert first.features == tuple(f"neighbour_1_{x}" for x in ("dx", "dy", "heading", "speed"))
    assert second.yaw_rate == "neighbour_2_yaw_rate"


PLACE = {"dx": "x", "dy": "y", "heading": "h", "speed": "v"}


@pytest.mark.parametrize(
    ("names", "gate", "features", "constants"),
    [
        ({"presence": "p"}, "p", "xyhv", "p"),
        ({"presence": "p", "acceleration": "a", "yaw_rate": "r"}, "p", "xyhvar", "p"),
        ({"length": "l", "width": "w"}, "l", "xyhvw", "lw"),
        ({"presence": "p", "length": "l", "width": "w"}, "p", "xyhvlw", "plw"),
    ],
    ids=str,
)
def test_a_slot_says_what_tells_that_somebody_is_there(
    names: dict[str, str], gate: str, features: str, constants: str
) -> None:
    slot = Slot(**PLACE, **names)

    assert (slot.gate, "".join(slot.features), "".join(slot.constants)) == (
        gate,
        features,
        constants,
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({}, "the slot of 'x' names neither presence nor length"),
        ({"acceleration": "a"}, "the slot of 'x' names neither presence nor length"),
        ({"length": "l"}, "the slot of 'x' names the length 'l', but no width"),
        ({"presence": "p", "width": "w"}, "the slot of 'x' names the width 'w', but no length"),
    ],
    ids=str,
)
def test_a_slot_named_by_half_is_refused(names: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Slot(**PLACE, **names)


def test_a_file_with_a_slot_named_by_half_is_refused_by_its_place() -> None:
    document = road_users_spec().to_json()
    del document["geometry"]["slots"][2]["width"]

    with pytest.raises(CheckpointError) as refusal:
        read_spec_of(document, "spec.json")

    assert str(refusal.value) == (
        "spec.json: geometry.slots[2]: the slot of 'neighbour_3_dx' names the length "
        "'neighbour_3_length', but no width: both or neither must be named"
    )


def test_a_signature_tells_what_callers_must_know_and_nothing_else() -> None:
    spec = anonymous_spec(2, 1)
    first, second = spec.state
    dims, _, digest = spec.signature.partition("-")
    assert (dims, len(digest)) == ("2x1", 8)

    same = [
        replace(spec, name="other", geometry=None),
        replace(spec, state=(replace(first, meaning="x", low=-1.0), second)),
    ]
    others = [
        replace(spec, dt_s=0.1),
        replace(spec, state=(second, first)),
        replace(spec, state=(first,)),
        replace(spec, state=(replace(first, unit="km"), second)),
        replace(spec, action=(replace(spec.action[0], name="x"),)),
        replace(spec, state=(first,), action=(second, *spec.action)),
    ]
    assert {one.signature for one in same} == {spec.signature}
    assert len({spec.signature, *(one.signature for one in others)}) == 1 + len(others)


def test_state_index_finds_features_by_name() -> None:
    spec = highway_spec()

    assert spec.state[spec.state_index("neighbour_3_dy")].name == "neighbour_3_dy"
    with pytest.raises(ValueError, match="no state feature 'altitude'"):
        spec.state_index("altitude")


ROAD = Geometry(length_m=5.0, width_m=2.0, slots=(), edges=())


def one(name: str) -> Feature:
    return Feature(name, "1", 0, 1, "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state": ()}, "state has no features"),
        ({"action": (one("a"), one("a"))}, "action names 'a' more than once"),
        ({"geometry": replace(ROAD, edges=("s", "s"))}, "Geometry names 's' more"),
        ({"geometry": highway_spec().geometry}, "no state feature"),
        ({"conventions": (Convention("a", "x"),) * 2}, "conventions names 'a' more than once"),
        ({"saturations": (Saturation("s", 0, None, ""),) * 2}, "saturations names 's' more"),
        ({"saturations": (Saturation("t", 0, None, ""),)}, "no state feature 't'"),
        ({"saturations": (Saturation("s", None, 1.5, ""),)}, "s saturates at 1.5, but the bound"),
        ({"saturations": (Saturation("s", -1, 1, ""),)}, "s saturates at -1, but the bound must"),
        ({"road_users": (RoadUser("a", (1, 2), (1, 2)),) * 2}, "road_users names 'a' more"),
        ({"example": Example("x", (0, 0), (0,))}, "example's state has 2 numbers, not 1"),
        ({"example": Example("x", (0,), ())}, "example's action has 0 numbers, not 1"),
        ({"example": Example("x", (2,), (0,))}, "example's s is 2, but must be from 0 to 1"),
        ({"example": Example("x", (0,), (float("nan"),))}, "example's a is nan, but must be"),
    ],
)
def test_an_inconsistent_spec_is_refused(arguments: dict[str, Any], message: str) -> None:
    valid: dict[str, Any] = {"name": "x", "dt_s": 0.1, "state": (one("s"),), "action": (one("a"),)}

    with pytest.raises(ValueError, match=message):
        Spec(**{**valid, **arguments})


SIZED = road_users_spec()


def with_geometry(**change: Any) -> Spec:
    assert SIZED.geometry is not None
    return replace(SIZED, geometry=replace(SIZED.geometry, **change))


def with_feature(name: str, **change: Any) -> Spec:
    state = tuple(replace(x, **change) if x.name == name else x for x in SIZED.state)
    return replace(SIZED, state=state, example=None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: with_geometry(length=None, width=None),
            "the ego's length is 'length' in its kinematics, but None in its geometry",
        ),
        (
            lambda: with_geometry(length="width", width="length"),
            "the ego's length is 'length' in its kinematics, but 'width' in its geometry",
        ),
        (lambda: with_geometry(length=None), "the geometry names the width 'width', but no length"),
        (lambda: with_geometry(length="weight"), "no state feature 'weight'"),
        (
            lambda: with_feature("neighbour_2_length", low=0.3),
            "neighbour_2_length is 0 where nobody is, but its low is 0.3",
        ),
        (lambda: Saturation("s", None, None, ""), "saturation of 's' names neither low nor high"),
        (lambda: Saturation("s", 2.0, 1.0, ""), "of 's': low is 2.0, but must be below high, 1.0"),
        (lambda: RoadUser("car", (5, 4), (1, 2)), "'car': length_m is from 5 to 4, but the first"),
        (lambda: RoadUser("car", (4, 5), (2, 1)), "'car': width_m is from 2 to 1, but the first"),
        (lambda: road_users_spec(["neighbour_5_yaw_rate"]), "'neighbour_5_yaw_rate' must be one"),
        (lambda: road_users_spec(["neighbour_1_dx"]), "'neighbour_1_dx' must be one of"),
        (lambda: road_users_spec(["neighbour_1_yaw_rate"] * 2), "more than once"),
    ],
)
def test_a_layout_of_sizes_that_does_not_fit_is_refused(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "name",
    [
        *("neighbour_1_dx", "neighbour_2_dy", "neighbour_3_heading", "neighbour_4_length"),
        *("neighbour_1_width", "length", "width"),
    ],
)
def test_places_and_sizes_may_not_saturate(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must not saturate: who is there"):
        replace(road_users_spec(), saturations=(Saturation(name, None, 3.0, "far"),))


def test_rates_and_the_egos_own_features_may_saturate() -> None:
    names = ("neighbour_1_acceleration", "left_edge", "curvature")
    saturations = tuple(Saturation(name, None, 0.1, "far") for name in names)
    assert replace(road_users_spec(), saturations=saturations).saturations == saturations


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_a_range_without_extent_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=r"feature 'x': low is .*, but must be below high"):
        Feature("x", "1", low, high, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": [{"name": "x"}]}, r"it lacks state\[0\]\.unit"),
        ({"geometry": {}}, r"it lacks geometry\.length_m"),
        ({"dt_s": 0.0}, r"it: dt_s is 0\.0, but should be greater than"),
        ({"dt_s": True}, r"it: dt_s is True, but should be a valid number"),
        ({"wheels": 4}, r"it: wheels is unknown \(known: name, dt_s, "),
    ],
)
def test_a_malformed_document_is_refused(change: dict[str, Any], message: str) -> None:
    document = {**highway_spec().to_json(), **change}

    with pytest.raises(CheckpointError, match=message):
        read_spec_of(document, "it")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({}, ""),
        ({"name": "other", "frame": None, "conventions": (), "example": None}, ""),
        ({"dt_s": 0.05 * (1 + 1e-7)}, ""),
        ({"dt_s": 0.1}, "steps of 0.05 s against 0.1 s"),
        ({"frame": "x"}, "the frame 'forward-right-down' against 'x'"),
        (
            {"action": (one("steer"), *highway_spec().action[1:])},
            "",
        ),
        (
            {"action": (one("wheel"), *highway_spec().action[1:]), "kinematics": None},
            "action feature 0 is 'steer' in '1' against 'wheel' in '1'",
        ),
        (
            {"state": highway_spec().state[:6], "geometry": None, "kinematics": None},
            "34 state features against 6",
        ),
        (
            {"action": (replace(highway_spec().action[0], unit="rad"), *highway_spec().action[1:])},
            "action feature 0 is 'steer' in '1' against 'steer' in 'rad'",
        ),
    ],
)
def test_specs_differ_where_their_numbers_mean_something_else(
    change: dict[str, Any], difference: str
) -> None:
    other = replace(highway_spec(), **{"example": None, **change})

    assert highway_spec().difference_to(other) == difference
