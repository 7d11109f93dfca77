"""Three recorded scenes of NGSIM as CommonRoad scenarios, which are not part of the repository.

COMMONROAD_SCENES names the folder that holds them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from training.dataset.episodes import load_episodes
from training.evaluation.evaluate import evaluate
from training.recordings.egos import Options
from training.recordings.importing import Imported, import_tracks

FOLDER = Path(os.environ.get("COMMONROAD_SCENES") or "/nowhere")
US_101, OTHER_US_101, LANKERSHIM = (
    f"USA_{name}_T-1.xml" for name in ("US101-26_1", "US101-5_1", "Lanker-1_3")
)
PRETRAINED = Path(models.__file__).parent / "pretrained"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="COMMONROAD_SCENES names no folder of recorded scenes"
)


def imported(name: str, out: Path, *, is_causal: bool = True, spec: str = "highway") -> Imported:
    options = Options(is_causal=is_causal)
    made, _ = import_tracks([FOLDER / name], out, spec=spec, options=options, progress=False)
    return made


@pytest.mark.parametrize(
    ("name", "egos", "impossible"),
    [(US_101, 25, 0.01), (OTHER_US_101, 20, 0.02), (LANKERSHIM, 23, 0.1)],
)
def test_nearly_everybody_is_an_ego_whose_actions_explain_its_track(
    tmp_path: Path, name: str, egos: int, impossible: float
) -> None:
    made = imported(name, tmp_path / "out")
    assert (made.egos, made.endings.total()) == (egos, 0)
    assert made.impossible <= impossible * made.steps
    assert all(reason.startswith("no ego, ") for reason in made.unused.names), made.unused.lines()


@pytest.mark.parametrize("spec", ["highway", "road-users"])
def test_states_are_those_of_cars_on_a_motorway(tmp_path: Path, spec: str) -> None:
    imported(US_101, tmp_path / "out", spec=spec)
    found = load_episodes(tmp_path / "out")
    assert found.true_states is not None
    index = found.spec.state_index
    for states in (found.states, found.true_states):
        assert np.abs(states[:, index("lane_offset")]).max() < 2.5
        assert np.abs(states[:, index("sin_heading_error")]).max() < 0.25
        edges = states[:, index("left_edge")] + states[:, index("right_edge")]
        # Five lanes or more, of which edges of far sides saturate; or the ramp of one lane.
        assert ((edges > 15) | (edges < 5)).all()
        assert (edges > 15).mean() > 0.9
        assert (states[:, index("neighbour_1_dx")] != 0).mean() > 0.9
    speed = index("speed")
    noise = [np.abs(np.diff(x[:81, speed])).mean() for x in (found.states, found.true_states)]
    assert noise[1] < noise[0]


def test_the_bundled_model_is_judged_on_them(tmp_path: Path) -> None:
    errors: dict[bool, Any] = {}
    for is_causal in (True, False):
        imported(US_101, tmp_path / f"{is_causal}", is_causal=is_causal, spec=str(PRETRAINED))
        report = tmp_path / f"report {is_causal}"
        found = evaluate(PRETRAINED, tmp_path / f"{is_causal}", report, bootstrap=20)
        assert found["dataset"]["held_out"]["origin"] == "other data"
        assert found["verdicts"]["unknowns"]["minutes"] > 2
        assert found["verdicts"]["all"]["safe"]["share"] > 0.9
        errors[is_causal] = {name: x["mean"] for name, x in found["neighbours"].items()}
    for name, error in errors[False].items():
        assert error < errors[True][name] < 1, name
