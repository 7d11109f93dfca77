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
from tools.refresh_pages import EXAMPLES, write_examples, write_numbers
from tools.refresh_pages import HTTP as HTTP_PAGE

SPEC = road_users_spec()
HTTP = HTTP_PAGE.read_text()


def test_the_documents_have_what_would_be_written_of_the_bundled_model(tmp_path: Path) -> None:
    checkpoint, page = load_checkpoint(PRETRAINED), tmp_path / "http.md"
    page.write_text(HTTP)

    write_numbers(checkpoint, page)
    write_examples(checkpoint.spec, tmp_path)

    assert page.read_text() == HTTP
    for name in ("predict", "rollout", "safety-check"):
        written = (tmp_path / f"{name}.json").read_text()
        assert (EXAMPLES / f"{name}.json").read_text() == written, name


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
    actions = torch.tensor([[action] * 16])
    rollout = bundled.ensemble.rollout(torch.tensor([state]), actions)
    (verdict,) = assess(
        rollout.states.numpy(),
        rollout.dones.numpy(),
        rollout.uncertainty.numpy(),
        bundled.limits,
        actions=actions.numpy(),
    )
    return verdict


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
