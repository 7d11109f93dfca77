from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from models.checkpoint.files import CheckpointError, checked
from models.highway import highway_spec
from models.spec import Convention, Example, Feature, Geometry, Spec, anonymous_spec


def test_the_bundled_spec_has_34_state_and_3_action_features() -> None:
    spec = highway_spec()

    assert (spec.state_dim, spec.action_dim, spec.dt_s) == (34, 3, 0.05)
    assert all(f.low < f.high and f.unit and f.meaning for f in (*spec.state, *spec.action))
    assert spec.geometry is not None
    assert len(spec.geometry.slots) == 4


@pytest.mark.parametrize("spec", [highway_spec(), anonymous_spec(5, 2)], ids=lambda s: s.name)
def test_a_spec_survives_json(spec: Spec) -> None:
    assert checked(Spec, json.loads(json.dumps(spec.to_json())), "it") == spec


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
        checked(Spec, document, "it")


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
