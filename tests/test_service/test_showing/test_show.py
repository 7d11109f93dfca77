"""`world-model show`: its text, its file as Rerun reads it back, and its refusals."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from models.checkpoint import Architecture, Checkpoint, load_checkpoint, save_checkpoint
from models.network.ensemble import WorldModelEnsemble
from models.spec import anonymous_spec
from models.survival import crash_probability_by_step
from service.cli import main
from service.settings import PRETRAINED
from service.showing.given import Given
from service.showing.places import Places
from service.showing.predicted import predict
from tests.test_service.test_showing.test_given import EPISODE, EXAMPLES

CHECK = EXAMPLES / "safety-check.json"
CRASH = PRETRAINED / "episodes" / "crash-2.json"


def invoke(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(main, ["show", *map(str, arguments)])


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(PRETRAINED)


@pytest.fixture(scope="module")
def read() -> Any:
    """Return what reads a file of Rerun: by entity and component, the values by step (or None)."""
    chunks = pytest.importorskip(
        "rerun.chunk", reason="needs Rerun: pip install -e '.[rerun]'", exc_type=ImportError
    )

    def read(path: Path) -> dict[tuple[str, str], dict[int | None, Any]]:
        found: dict[tuple[str, str], dict[int | None, Any]] = defaultdict(dict)
        for chunk in chunks.RrdReader(path).stream():
            table = chunk.to_record_batch().to_pydict()
            steps = table.get("step") or [None] * chunk.num_rows
            for name, values in table.items():
                for step, value in zip(steps, values, strict=True):
                    if value is not None:
                        found[chunk.entity_path, name].setdefault(step, value)
        return found

    return read


def of_model(checkpoint: Checkpoint, path: Path) -> tuple[Any, Any]:
    """Return what the model itself predicts for a body, states [H+1, S] and hazards [H]."""
    body = json.loads(path.read_text())
    state, actions = (torch.tensor(body[name])[None] for name in ("state", "actions"))
    with torch.inference_mode():
        rollout = checkpoint.ensemble.rollout(state, actions)
    return rollout.states[0].numpy(), rollout.dones[0].numpy()


def test_text_says_verdict_reasons_and_each_step(checkpoint: Checkpoint) -> None:
    result = invoke(CHECK)

    lines = result.output.splitlines()
    assert result.exit_code == 0
    assert lines[0] == f"safety-check.json, model {checkpoint.version}"
    assert lines[1:3] == ["unsafe within 0.6 s", "crash probability 0.7111, threshold 0.0842"]
    assert "overlaps neighbour 1 by 0.14 m" in result.output
    assert lines[-2].split()[:6] == ["12", "0.60", "0.7111", "0.6960", "0.721", "-0.14"]
    assert lines[-1] == "the ego touches neighbour_1 after 0.60 s"


def test_fewer_members_have_no_thresholds(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "body.json"
    path.write_text(json.dumps({**json.loads(CHECK.read_text()), "members": 2}))

    lines = invoke(path).output.splitlines()

    assert lines[0] == f"body.json, model {checkpoint.version}-2of5"
    assert lines[1] == "unknown within 0.6 s"


def test_a_file_of_rerun_holds_what_the_model_predicts(
    checkpoint: Checkpoint, read: Any, tmp_path: Path
) -> None:
    result = invoke(CHECK, "--rerun", tmp_path / "scene.rrd")

    assert result.output.endswith(f"Wrote {tmp_path / 'scene.rrd'}\n")
    held = read(tmp_path / "scene.rrd")
    states, dones = of_model(checkpoint, CHECK)
    column = partial(Places(checkpoint.spec).column, states)
    until = held["/crash_probability/until_step", "Scalars:scalars"]
    assert list(until) == list(range(1, 13))
    assert np.ravel(list(until.values())) == pytest.approx(crash_probability_by_step(dones))
    hazards = held["/crash_probability/at_step", "Scalars:scalars"]
    assert np.ravel(list(hazards.values())) == pytest.approx(dones)
    assert held["/crash_probability/threshold", "Scalars:scalars"][1] == [
        checkpoint.limits.crash_threshold
    ]
    seconds = [x.total_seconds() for x in held["/reward", "time"].values()]
    assert seconds == pytest.approx(0.05 * np.arange(1, 13))
    ego, other = "/world/predicted/ego", "/world/predicted/neighbour_1"
    assert held[ego, "Boxes3D:half_sizes"][12][0][:2] == pytest.approx(
        [column("length")[0] / 2, column("width")[0] / 2]
    )
    places = {name: np.array(held[name, "Boxes3D:centers"][12][0][:2]) for name in (ego, other)}
    apart = np.hypot(column("neighbour_1_dx")[12], column("neighbour_1_dy")[12])
    assert np.hypot(*(places[other] - places[ego])) == pytest.approx(apart, rel=1e-5)
    assert places[ego][1] > 1  # the driver changes to the left: y > 0
    (mark,) = held["/world/crash", "Points3D:positions"].items()
    assert mark[0] == 12
    assert mark[1][0][:2] == pytest.approx((places[ego] + places[other]) / 2, rel=1e-5)
    assert {name for name, _ in held if name.startswith("/world/road")} == {
        "/world/road/lane",
        "/world/road/left_edge",
        "/world/road/right_edge",
    }
    (text,) = held["/verdict", "TextDocument:text"][None]
    assert text.startswith("# unsafe within 0.6 s\n")
    assert "crash probability 0.7111 reaches the threshold 0.0842" in text
    assert not any("recorded" in name for name, _ in held)


def test_paths_of_members_average_to_what_all_predict(
    checkpoint: Checkpoint, read: Any, tmp_path: Path
) -> None:
    invoke(CHECK, "--rerun", tmp_path / "scene.rrd")

    held = read(tmp_path / "scene.rrd")
    paths = np.array(held["/world/members/ego", "LineStrips3D:strips"][None])
    alone = np.array(held["/world/predicted/ego/path", "LineStrips3D:strips"][None])
    assert paths.shape == (checkpoint.member_count, 13, 3)
    assert paths.std(axis=0)[-1, 0] > 1e-4
    assert paths.mean(axis=0) == pytest.approx(alone[0], abs=2e-3)


def test_members_are_those_that_the_ensemble_rolls_out(checkpoint: Checkpoint) -> None:
    body = json.loads(CHECK.read_text())
    state, actions = (np.array(body[name], np.float32) for name in ("state", "actions"))
    given = Given("", state, actions)
    with torch.inference_mode():
        states, _, _ = checkpoint.ensemble.rollout_members(
            *(torch.tensor(x)[None] for x in (given.state, given.actions))
        )

    members = predict(given, checkpoint).members

    assert members == pytest.approx(states[:, 0].numpy(), abs=2e-3)


def test_an_episode_shows_what_was_recorded_beside_it(read: Any, tmp_path: Path) -> None:
    document = json.loads(CRASH.read_text())

    result = invoke(CRASH, "--step", 30, "--rerun", tmp_path / "scene.rrd")

    assert result.output.startswith("crash-2.json from step 30 of 42, ")
    held = read(tmp_path / "scene.rrd")
    centers = held["/world/recorded/neighbour_1", "Boxes3D:centers"]
    dx, dy = (document["state_features"].index(f"neighbour_1_{x}") for x in ("dx", "dy"))
    now = document["states"][30]
    assert centers[0][0][:2] == pytest.approx([now[dx], -now[dy]], rel=1e-5)
    assert list(centers) == list(range(13))


def test_other_models_are_shown_as_curves(read: Any, tmp_path: Path) -> None:
    architecture = Architecture(hidden_dims=(32,), geometry=False)
    spec = anonymous_spec(4, 1)
    ensemble = WorldModelEnsemble.from_members([architecture.build(spec) for _ in range(2)])
    save_checkpoint(Checkpoint(ensemble.eval(), spec, architecture), tmp_path / "other")
    (tmp_path / "body.json").write_text('{"state": [1, 2, 3, 4], "actions": [[0], [0]]}')

    result = invoke(
        tmp_path / "body.json", "--checkpoint", tmp_path / "other", "--rerun", tmp_path / "x.rrd"
    )

    assert "unknown within 0.1 s" in result.output
    held = read(tmp_path / "x.rrd")
    assert held["/state/state_1/predicted", "Scalars:scalars"][0] == [2.0]
    assert not any(name.startswith("/world") for name, _ in held)


def test_nothing_but_the_file_is_written(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home))  # where its analytics would be set up

    invoke(EPISODE, "--rerun", tmp_path / "scene.rrd")

    assert sorted(tmp_path.rglob("*")) == [home, tmp_path / "scene.rrd"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scene.txt", "Rerun knows its files by their ending, .rrd"),
        ("nowhere/scene.rrd", "there is no folder"),
        ("there.rrd", "is there: name another file, or write over it by --overwrite"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_first(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "there.rrd").write_text("kept")

    result = invoke(CHECK, "--rerun", tmp_path / name)

    assert result.exit_code == 1
    assert said in result.output
    assert len(result.output.splitlines()) == 1
    assert (tmp_path / "there.rrd").read_text() == "kept"


def test_a_file_is_written_over_if_that_is_asked_for(read: Any, tmp_path: Path) -> None:
    (tmp_path / "there.rrd").write_text("old")

    assert invoke(CHECK, "--rerun", tmp_path / "there.rrd", "--overwrite").exit_code == 0

    assert read(tmp_path / "there.rrd")


def test_without_rerun_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    monkeypatch.delitem(sys.modules, "service.showing.recording", raising=False)

    result = invoke(CHECK, "--rerun", tmp_path / "scene.rrd")

    assert result.exit_code == 1
    assert result.output == "Error: rerun is missing: pip install 'world-model-service[rerun]'\n"


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text("{}")

    for arguments in ((tmp_path / "body.json",), (CHECK, "--checkpoint", tmp_path / "none")):
        result = invoke(*arguments)
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert len(result.output.splitlines()) == 1
