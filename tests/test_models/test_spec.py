from __future__ import annotations

import json
from typing import Any

import pytest

from models.highway import highway_spec
from models.spec import Feature, Spec, anonymous_spec


def test_the_bundled_spec_has_34_state_and_3_action_features() -> None:
    spec = highway_spec()

    assert (spec.state_dim, spec.action_dim, spec.dt_s) == (34, 3, 0.05)
    assert all(f.low < f.high and f.unit and f.meaning for f in (*spec.state, *spec.action))
    assert spec.geometry is not None
    assert len(spec.geometry.slots) == 4


@pytest.mark.parametrize("spec", [highway_spec(), anonymous_spec(5, 2)], ids=lambda s: s.name)
def test_a_spec_survives_json(spec: Spec) -> None:
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_state_index_finds_features_by_name() -> None:
    spec = highway_spec()

    assert spec.state[spec.state_index("neighbour_3_dy")].name == "neighbour_3_dy"
    with pytest.raises(ValueError, match="no state feature 'altitude'"):
        spec.state_index("altitude")


def one(name: str) -> Feature:
    return Feature(name, "1", 0, 1, "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state": ()}, "state has no features"),
        ({"action": (one("a"), one("a"))}, "action feature names repeat"),
        ({"dt_s": 0.0}, "dt_s must be positive"),
        ({"geometry": highway_spec().geometry}, "no state feature"),
    ],
    ids=["empty", "repeated", "dt", "geometry"],
)
def test_an_inconsistent_spec_is_refused(arguments: dict[str, Any], message: str) -> None:
    valid: dict[str, Any] = {"name": "x", "dt_s": 0.1, "state": (one("s"),), "action": (one("a"),)}

    with pytest.raises(ValueError, match=message):
        Spec(**{**valid, **arguments})


@pytest.mark.parametrize("change", [{"state": [{"name": "x"}]}, {"geometry": {}}])
def test_a_malformed_document_is_refused(change: dict[str, Any]) -> None:
    document = {**highway_spec().to_json(), **change}

    with pytest.raises(ValueError, match="malformed"):
        Spec.from_json(document)
