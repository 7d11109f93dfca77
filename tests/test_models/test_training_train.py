from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.checkpoint import load_checkpoint
from models.outcomes import crash_probability
from models.training.calibrate import predict_windows
from models.training.member import MemberTrainer, choose_device
from models.training.normalise import fit_normalisers
from models.training.options import Stage, TrainOptions
from models.training.train import TrainingError, fit
from tests.toy import toy_spec, toy_windows

QUICK = TrainOptions(
    members=2,
    hidden_dims=(48, 32),
    stages=(Stage(1, 100, 64), Stage(6, 200, 64)),
    validate_every=50,
    learning_rate=3e-3,
    workers=1,
    device="cpu",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    fit(
        toy_windows(3000, 6, seed=1),
        toy_windows(1000, 6, seed=2),
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


def test_calibration_is_complete_and_holds_on_its_own_data(checkpoint: Path) -> None:
    loaded, validation = load_checkpoint(checkpoint), toy_windows(1000, 6, seed=2)
    calibration = loaded.calibration
    prediction = predict_windows(loaded.ensemble, validation)

    assert calibration.crash_threshold is not None
    assert calibration.uncertainty_limit is not None
    harmless = crash_probability(prediction.dones)[~validation.ends]
    assert (harmless >= calibration.crash_threshold).mean() <= 0.012
    assert (prediction.uncertainty > calibration.uncertainty_limit).mean() <= 0.002
    assert calibration.horizon == 6
    # Platt scaling brings the mean probability near the frequency.
    assert crash_probability(prediction.dones).mean() == pytest.approx(
        validation.ends.mean(), abs=0.06
    )
    low, high = np.array(calibration.state_low), np.array(calibration.state_high)
    assert (low < -0.95).all()
    assert (high[2:] > 1.9).all()


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
        normalisers = fit_normalisers(train, toy_spec())
        return MemberTrainer(
            0, toy_spec(), options, normalisers, train, validation, tmp_path / folder
        )

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


def test_training_stops_early_when_validation_no_longer_improves(tmp_path: Path) -> None:
    options = TrainOptions(
        hidden_dims=(32,),
        stages=(Stage(1, 400, 16),),
        validate_every=5,
        patience=2,
        learning_rate=0.3,
        device="cpu",
    )
    train = toy_windows(200, 1, seed=1)
    trainer = MemberTrainer(
        0, toy_spec(), options, fit_normalisers(train, toy_spec()), train, train, tmp_path
    )

    trainer.run()

    assert trainer.progress.update < 400
    assert trainer.progress.best_loss == min(
        entry["validation_total"] for entry in trainer.progress.history
    )


def test_a_run_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"options": "others"}))
    windows = toy_windows(10, 6, seed=0)

    with pytest.raises(TrainingError, match="holds a run with other arguments or data"):
        fit(windows, windows, toy_spec(), tmp_path / "out", tmp_path, QUICK, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [({"members": 0}, "members must be at least 1"), ({"stages": ()}, "stages must not be empty")],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainOptions(**change)


def test_the_curriculum_goes_stage_by_stage() -> None:
    assert [QUICK.stage_at(i).horizon for i in (0, 99, 100, 299, 300)] == [1, 1, 6, 6, 6]
    assert (QUICK.horizon, QUICK.updates) == (6, 300)


def test_auto_device_is_cuda_if_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"

    assert choose_device("auto").type == expected
    assert choose_device("cpu").type == "cpu"
