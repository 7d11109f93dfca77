from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.checkpoint import load_checkpoint
from models.conformal import conformal_threshold
from models.outcomes import crash_probability
from models.training.calibrate import episode_scores, predict_windows
from models.training.dataset import Windows
from models.training.member import MemberTrainer, choose_device
from models.training.options import Stage, TrainOptions
from models.training.train import TrainingError, fit
from tests.toy import toy_spec, toy_windows

QUICK = TrainOptions(
    members=2,
    hidden_dims=(48, 32),
    stages=(Stage(1, 100, 64, outlier_weight=0.1), Stage(6, 200, 64, outlier_weight=0.1)),
    validate_every=50,
    learning_rate=3e-3,
    workers=1,
    device="cpu",
)


def toy_parts() -> dict[str, Windows]:
    return {
        "train": toy_windows(3000, 6, seed=1),
        "validation": toy_windows(1000, 6, seed=2),
        "calibration": toy_windows(1000, 6, seed=4),
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    fit(
        toy_parts(),
        toy_spec(),
        folder / "checkpoint",
        folder / "run",
        QUICK,
        {"made": "for a test"},
    )
    return folder / "checkpoint"


def test_a_world_of_other_dims_is_learned(checkpoint: Path) -> None:
    loaded, held_out = load_checkpoint(checkpoint), toy_windows(1000, 6, seed=3)
    prediction = predict_windows(loaded.ensemble, held_out)
    stays = ~held_out.ends

    error = np.abs(prediction.states[stays, 6, :2] - held_out.states[stays, 6, :2]).mean()
    still = np.abs(held_out.states[stays, 0, :2] - held_out.states[stays, 6, :2]).mean()
    assert error < 0.25 * still
    probability = crash_probability(prediction.dones)
    assert probability[held_out.ends].mean() > 0.6
    assert probability[stays].mean() < 0.2


def test_members_are_taught_to_disagree_on_wrong_states(checkpoint: Path) -> None:
    loaded, held_out = load_checkpoint(checkpoint), toy_windows(500, 6, seed=3)
    states = np.array(held_out.states)
    states[:, 0] *= 10  # a wrong unit
    wrong = replace(held_out, states=states)
    right, outlying = (
        predict_windows(loaded.ensemble, windows).uncertainty for windows in (held_out, wrong)
    )
    assert np.mean(outlying > np.quantile(right, 0.99)) > 0.8


def test_calibration_is_complete_and_holds_on_its_own_data(checkpoint: Path) -> None:
    loaded, held_out = load_checkpoint(checkpoint), toy_parts()["calibration"]
    calibration = loaded.calibration
    prediction = predict_windows(loaded.ensemble, held_out)

    assert calibration.uncertainty_limit is not None
    assert (prediction.uncertainty > calibration.uncertainty_limit).mean() <= 0.002
    assert calibration.horizon == 6
    # Platt scaling brings the mean probability near the frequency.
    assert crash_probability(prediction.dones).mean() == pytest.approx(
        held_out.ends.mean(), abs=0.06
    )
    low, high = np.array(calibration.state_low), np.array(calibration.state_high)
    assert (low < -0.95).all()
    assert (high[2:] > 1.9).all()


def test_the_crash_threshold_is_the_lower_of_rate_and_guarantee(checkpoint: Path) -> None:
    loaded, held_out = load_checkpoint(checkpoint), toy_parts()["calibration"]
    probability = crash_probability(predict_windows(loaded.ensemble, held_out).dones)
    notes, threshold = loaded.calibration.notes, loaded.calibration.crash_threshold
    conformal = notes["conformal"]

    assert threshold is not None
    assert threshold == min(notes["false_alarm_threshold"], conformal["threshold"])
    assert conformal["lead_s"] == pytest.approx(0.4)
    scores = episode_scores(probability, held_out, 4)
    assert conformal["episodes"] == len(scores)
    assert (scores < threshold).mean() <= conformal["alpha"]
    harmless = probability[~held_out.ends]
    assert notes["realised_false_alarm_rate"] == pytest.approx((harmless >= threshold).mean())
    assert (harmless >= notes["false_alarm_threshold"]).mean() <= 0.012


def test_a_conformal_threshold_keeps_its_promise_on_new_episodes() -> None:
    """Over many draws the share of new scores below the threshold is at most alpha."""
    rng = np.random.default_rng(0)
    missed = []
    for _ in range(300):
        threshold = conformal_threshold(rng.beta(5, 1, 300), 0.05)
        assert threshold is not None
        missed.append(rng.beta(5, 1, 2000) < threshold)
    assert np.mean(missed) == pytest.approx(0.05, abs=0.004)
    assert np.mean(missed) <= 0.052


def test_too_few_episodes_carry_no_guarantee() -> None:
    assert conformal_threshold(np.linspace(0, 1, 98), 0.01) is None
    assert conformal_threshold(np.linspace(0.2, 1, 99), 0.01) == pytest.approx(0.2)


def test_an_episodes_score_counts_only_windows_that_warn_in_time() -> None:
    windows = toy_windows(200, 6, seed=9)
    windows = windows.take(windows.ends)
    ahead = windows.terminated.argmax(1) + 1
    late, early = int(np.argmin(ahead)), int(np.argmax(ahead))
    assert ahead[late] < 3 <= ahead[early]
    pair = replace(windows.take(np.array([late, early])), episode=np.array([7, 7]))

    assert episode_scores(np.array([0.9, 0.2]), pair, lead_steps=3).tolist() == [0.2]
    assert episode_scores(np.array([0.9, 0.2]), pair, lead_steps=1).tolist() == [0.9]
    assert len(episode_scores(np.array([0.9]), pair.take(np.array([0])), lead_steps=3)) == 0


def test_training_is_recorded(checkpoint: Path) -> None:
    record = load_checkpoint(checkpoint).training

    assert record["made"] == "for a test"
    assert record["options"]["members"] == 2
    history = record["members"][0]["history"]
    assert history[-1]["validation_total"] < history[0]["validation_total"]
    assert list((checkpoint.parent / "run" / "member-0" / "tensorboard").iterdir())


class Interrupted:
    """Raises Ctrl-C at a given update."""

    def __init__(self, trainer: MemberTrainer, at: int) -> None:
        self.update, self.at = trainer._update, at

    def __call__(self, update: int) -> dict[str, torch.Tensor]:
        if update == self.at:
            raise KeyboardInterrupt
        return self.update(update)


def test_an_interrupted_member_resumes_to_the_same_weights(tmp_path: Path) -> None:
    options = TrainOptions(
        hidden_dims=(32,), stages=(Stage(2, 60, 32),), validate_every=20, device="cpu"
    )
    train, validation = toy_windows(300, 2, seed=1), toy_windows(100, 2, seed=2)

    def trainer(folder: str) -> MemberTrainer:
        return MemberTrainer(0, toy_spec(), options, train, validation, tmp_path / folder)

    whole = trainer("whole").run()
    broken = trainer("broken")
    broken._update = Interrupted(broken, 40)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    resumed = trainer("broken")
    model = resumed.run()

    assert resumed.progress.update == 60
    for name, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_run_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"options": "others"}))

    with pytest.raises(TrainingError, match="holds a run with other arguments or data"):
        fit(toy_parts(), toy_spec(), tmp_path / "out", tmp_path, QUICK, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [({"members": 0}, "members must be at least 1"), ({"stages": ()}, "stages must not be empty")],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainOptions(**change)


def test_the_last_stage_can_train_the_heads_alone(tmp_path: Path) -> None:
    options = TrainOptions(
        hidden_dims=(32,),
        stages=(Stage(2, 30, 32), Stage(2, 30, 64, only=("done_head", "reward_head"))),
        validate_every=30,
        device="cpu",
    )
    trainer = MemberTrainer(
        0, toy_spec(), options, toy_windows(300, 2, 1), toy_windows(100, 2, 2), tmp_path
    )
    rates = [trainer._schedule(update) for update in range(60)]
    assert rates[29] < rates[15] > rates[0]
    assert rates[30:] == rates[:30]  # a schedule of its own

    trainer._update = Interrupted(trainer, 30)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    before = {name: x.clone() for name, x in trainer.model.state_dict().items()}
    trainer._update = trainer._update.update  # type: ignore[method-assign]
    trainer.run()

    changed = {
        name for name, x in trainer.model.state_dict().items() if not torch.equal(x, before[name])
    }
    assert {name.split(".")[0] for name in changed} == {"done_head", "reward_head"}


def test_auto_device_is_cuda_if_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"

    assert choose_device("auto").type == expected
    assert choose_device("cpu").type == "cpu"
