"""What is read of a file to be shown, and how what cannot be is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.checkpoint import Checkpoint, load_checkpoint
from service.errors import InvalidRequestError
from service.settings import PRETRAINED
from service.showing.given import Choice, Given, read_given

EXAMPLES = Path(__file__).parents[3] / "examples"
EPISODE = PRETRAINED / "episodes" / "crash-1.json"


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(PRETRAINED)


@pytest.fixture
def read(checkpoint: Checkpoint, tmp_path: Path) -> Callable[..., Given]:
    """Return what reads a document, with some of its fields replaced."""

    def read(source: Path, step: int | None = None, row: int | None = None, **new: Any) -> Given:
        path = tmp_path / source.name
        path.write_text(json.dumps({**json.loads(source.read_text()), **new}))
        choice = Choice(step, row)
        return read_given(path, checkpoint, choice, max_horizon=64, max_rows=8)

    return read


def test_an_episode_is_read_from_a_step_with_what_was_recorded_then(read: Any) -> None:
    document = json.loads(EPISODE.read_text())

    given = read(EPISODE, step=10)

    assert given.title == "crash-1.json from step 10 of 115"
    assert given.state.tolist() == np.array(document["states"][10], np.float32).tolist()
    assert given.actions.tolist() == np.array(document["actions"][10:26], np.float32).tolist()
    assert (
        given.recorded.states.tolist() == np.array(document["states"][10:27], np.float32).tolist()
    )
    assert given.recorded.actions.tolist() == given.actions.tolist()


def test_an_episode_starts_a_horizon_before_its_end_unless_told_otherwise(read: Any) -> None:
    assert read(EPISODE).title.endswith("from step 99 of 115")
    assert len(read(EPISODE, step=112).actions) == 3


@pytest.mark.parametrize(
    ("name", "row", "horizon"),
    [("predict", None, 1), ("rollout", 1, 16), ("safety-check", None, 12), ("safety-check", 0, 12)],
)
def test_bodies_of_all_endpoints_are_read(
    read: Any, name: str, row: int | None, horizon: int
) -> None:
    body = json.loads((EXAMPLES / f"{name}.json").read_text())
    actions = np.array(body.get("actions", [body.get("action")]), np.float32)

    given = read(EXAMPLES / f"{name}.json", row=row)

    assert given.state.tolist() == np.array(body["state"], np.float32).tolist()
    assert given.actions.tolist() == (actions[row] if actions.ndim == 3 else actions).tolist()
    assert len(given.actions) == horizon
    assert given.recorded is None


def test_a_body_says_threshold_and_members(read: Any) -> None:
    given = read(EXAMPLES / "safety-check.json", threshold=0.5, members=2, include=["trajectory"])

    assert (given.threshold, given.members) == (0.5, 2)


def test_a_body_of_many_states_is_one_of_a_rollout(read: Any) -> None:
    body = json.loads((EXAMPLES / "rollout.json").read_text())

    given = read(EXAMPLES / "rollout.json", row=1, state=[body["state"]] * 2)

    assert given.title == "rollout.json, row 1 of 2"


@pytest.mark.parametrize(
    ("source", "new", "said"),
    [
        (EPISODE, {"step": 115}, "step is 115 (allowed: 0 to 114, the steps of the episode)"),
        (EPISODE, {"row": 0}, "row is 0, but an episode has no rows (allowed: none)"),
        (EPISODE, {"states": [[1.0]]}, "states has the shape [1, 1] (allowed: rows of 34 finite"),
        (EPISODE, {"states": "none"}, "states holds values of type"),
        (EPISODE, {"actions": [[0, 0, 0]]}, "states has 116 rows, actions has 1 (allowed: one"),
        (
            EPISODE,
            {"actions": [[0, 0, 2]] * 115},
            "from step 99, actions[0][2] brake is 2 (allowed",
        ),
        (EPISODE, {"dt_s": 0.1}, "from step 99, dt_s is 0.1 (allowed: 0.05, the length of"),
        (EPISODE, {"state_features": ["speed"]}, "state_features are not those of the model"),
        (EPISODE, {"action_features": ["x"] * 3}, 'action_features[0] is "x" (allowed: steer, as'),
        (EXAMPLES / "predict.json", {"step": 0}, "step is 0, but the file is no episode"),
        (EXAMPLES / "predict.json", {"row": 1}, "row is 1 (allowed: 0 to 0, the rows of the"),
        (EXAMPLES / "predict.json", {"state": [1]}, "state has 1 state features (allowed: 34"),
        (EXAMPLES / "rollout.json", {}, "row is not given, but the request has 2 rows"),
        (EXAMPLES / "rollout.json", {"frame": "iso8855"}, 'frame is "iso8855" (allowed: forward-'),
        (EXAMPLES / "safety-check.json", {"colour": 1}, "colour is not a known field"),
    ],
)
def test_what_cannot_be_shown_is_named_with_what_is_allowed(
    read: Any, source: Path, new: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(source, **new)

    assert f"{source.name}: {said}" in caught.value.message


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"states": 1e999'])
def test_what_is_no_object_is_refused(checkpoint: Checkpoint, tmp_path: Path, text: str) -> None:
    path = tmp_path / "body.json"
    path.write_text(text)

    with pytest.raises(InvalidRequestError, match=str(path)):
        read_given(path, checkpoint, Choice(), max_horizon=64, max_rows=8)


def test_an_episode_without_actions_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "episode.json"
    path.write_text('{"states": [[1]]}')

    with pytest.raises(InvalidRequestError, match="actions is missing"):
        read_given(path, checkpoint, Choice(), max_horizon=64, max_rows=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"states": [[%s' % ("9" * 6000), "the episode cannot be read: "),
        ('{"states": ' + "[" * 100_000, "the episode cannot be read: it is nested too deeply"),
        ('{"states": [[1', "the episode cannot be read: Expecting ',' delimiter"),
    ],
    ids=["digits", "depth", "end"],
)
def test_an_episode_that_is_no_json_is_not_taken_for_a_request(
    checkpoint: Checkpoint, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "episode.json"
    path.write_text(text)

    with pytest.raises(InvalidRequestError) as raised:
        read_given(path, checkpoint, Choice(), max_horizon=64, max_rows=8)

    assert message in raised.value.message


def test_numbers_too_large_for_a_float32_are_refused_without_a_warning(read: Any) -> None:
    document = json.loads(EPISODE.read_text())
    document["states"][99][0] = 1e39

    with pytest.raises(InvalidRequestError, match="from step 99, state"):
        read(EPISODE, states=document["states"])
