"""The bundled model's conventions: in the documents, and in what it answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from models.checkpoint import Checkpoint, load_checkpoint
from models.road_users import road_users_spec
from models.safety import Verdict, assess
from service.settings import PRETRAINED

SPEC = road_users_spec()
TEXTS = {convention.about: convention.text for convention in SPEC.conventions}
HTTP = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


def test_the_documents_have_the_conventions_of_the_spec() -> None:
    flat = " ".join(HTTP.split())

    for about, text in TEXTS.items():
        assert (text in HTTP) if about == "drawing" else (text in flat), about
    limits = load_checkpoint(PRETRAINED).limits
    for feature in (*SPEC.state, *SPEC.action):
        if re.match("neighbour_[2-4]", feature.name):
            continue
        name = feature.name.replace("neighbour_1", "neighbour_N")
        row = f"| `{name}` | {feature.unit} | {feature.low:g} to {feature.high:g} | "
        if feature in SPEC.state:
            i = SPEC.state_index(feature.name)
            row += f"{limits.state_low[i]:.3g} to {limits.state_high[i]:.3g} | "
        assert row + feature.meaning in HTTP
    for user in SPEC.road_users:
        length, width = (f"{low:g} to {high:g}" for low, high in (user.length_m, user.width_m))
        assert f"| {user.kind} | {length} | {width} |" in HTTP
    assert SPEC.example is not None
    assert SPEC.example.scene in flat


def test_the_documents_example_is_that_of_the_spec() -> None:
    written = re.search(r"```json\n(\{\"state\": \[\n.*?)```", HTTP, re.DOTALL)
    assert written is not None
    body = json.loads(written[1])

    assert SPEC.example is not None
    assert body == {
        "state": list(SPEC.example.state),
        "action": list(SPEC.example.action),
        "dt_s": SPEC.dt_s,
        "frame": SPEC.frame,
    }


@pytest.fixture(scope="module")
def bundled() -> Checkpoint:
    return load_checkpoint(PRETRAINED)


def judged(bundled: Checkpoint, state: list[float], action: tuple[float, ...]) -> Verdict:
    rollout = bundled.ensemble.rollout(torch.tensor([state]), torch.tensor([[action] * 16]))
    states, dones, uncertainty = rollout.states, rollout.dones, rollout.uncertainty
    return assess(states.numpy(), dones.numpy(), uncertainty.numpy(), bundled.limits)[0]


def test_the_example_is_safe(bundled: Checkpoint) -> None:
    assert bundled.spec == SPEC
    assert SPEC.example is not None

    assert judged(bundled, list(SPEC.example.state), SPEC.example.action).verdict == "safe"


def test_signs_of_another_frame_change_a_verdict_as_documented(bundled: Checkpoint) -> None:
    ego, size = [25.0, 0.0, 0.0, 6.0, 6.0, 0.0, 4.8, 1.9], [4.8, 1.9]
    nobody = [0.0] * 20  # three slots, and accelerations of two

    right = judged(bundled, [*ego, *size, 3.0, -3.5, 0.0, 25.0, *nobody], (-0.5, 0, 0))
    wrong = judged(bundled, [*ego, *size, 3.0, 3.5, 0.0, 25.0, *nobody], (-0.5, 0, 0))

    assert (right.verdict, wrong.verdict) == ("unsafe", "safe")
