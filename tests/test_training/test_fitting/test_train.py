from __future__ import annotations

import json
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.checkpoint import (
    Architecture,
    Calibration,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from models.checkpoint.files import CheckpointError
from models.highway import highway_spec
from models.importing import import_weights
from models.network.ensemble import WorldModelEnsemble
from models.network.world_model import WorldModel
from models.road_users import road_users_spec
from models.safety import assess
from models.safety import verdicts as safety_verdicts
from models.spec import LONGEST_NAME
from models.survival import crash_probability
from tests.test_training.driving import mixed_episodes, save_store
from tests.test_training.interrupted import Running, still_there
from tests.test_training.toy import toy_spec, toy_windows
from training.dataset.overlap import origin_note
from training.dataset.sources import open_dataset
from training.dataset.store import load_store
from training.dataset.windows import Windows, make_windows
from training.fitting.calibrate import episode_scores, predict_windows
from training.fitting.member import (
    STATE,
    MemberTrainer,
    choose_device,
    end_errors,
    rollout_errors,
    updates_saved,
)
from training.fitting.options import CURRICULUM, Stage, TrainOptions
from training.fitting.recalibrate import recalibrate
from training.fitting.train import TrainingError, fit
from training.running.files import OutputExistsError
from training.running.locks import FolderLockedError, locked
from training.running.stopping import Stopped, stoppable

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
    assert threshold == min(notes["false_alarm_threshold"], conformal["threshold"], 0.5)
    assert conformal["lead_s"] == pytest.approx(0.4)
    scores = episode_scores(probability, held_out, 4)
    assert conformal["episodes"] == len(scores)
    assert (scores < threshold).mean() <= conformal["alpha"]
    harmless = probability[~held_out.ends]
    assert notes["realised_false_alarm_rate"] == pytest.approx((harmless >= threshold).mean())
    assert (harmless >= notes["false_alarm_threshold"]).mean() <= 0.012


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


HEADS = Stage(2, 20, 32, only=("reward_head",), outlier_weight=0.05)


@pytest.mark.parametrize("stages", [(Stage(2, 60, 32),), (Stage(2, 40, 32), HEADS)])
def test_an_interrupted_member_resumes_to_the_same_weights(
    stages: tuple[Stage, ...], tmp_path: Path
) -> None:
    options = TrainOptions(hidden_dims=(32,), stages=stages, validate_every=20, device="cpu")
    train, validation = toy_windows(300, 2, seed=1), toy_windows(100, 2, seed=2)

    def trainer(folder: str) -> MemberTrainer:
        return MemberTrainer(0, toy_spec(), options, train, validation, tmp_path / folder)

    whole = trainer("whole").run()
    broken = trainer("broken")
    broken._update = Interrupted(broken, 50)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    resumed = trainer("broken")
    model = resumed.run()

    assert resumed.state.update == 60
    for name, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_member_that_looks_for_its_errors_can_be_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    went_on = []

    def stopped(model: WorldModel, windows: Windows, *rest: object) -> NDArray[np.float64]:
        signal.raise_signal(signal.SIGINT)
        went_on.append(True)
        return np.ones(len(windows))

    monkeypatch.setattr("training.fitting.member.rollout_errors", stopped)
    options = replace(QUICK, members=2, stages=(Stage(2, 20, 32), HEADS), validate_every=20)
    train, validation = toy_windows(300, 2, seed=1), toy_windows(100, 2, seed=2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            MemberTrainer(0, toy_spec(), options, train, validation, tmp_path).run()
    finally:
        signal.signal(signal.SIGINT, before)

    assert not went_on
    assert updates_saved(tmp_path / STATE) == 20


def test_members_are_taught_rewards_by_their_errors_on_either_side(tmp_path: Path) -> None:
    stages = (Stage(2, 100, 64), replace(HEADS, updates=400))
    options = replace(QUICK, members=2, stages=stages, learning_rate=0.01)
    train, validation = toy_windows(500, 2, seed=1), toy_windows(100, 2, seed=2)
    # What is to the right is blown about: nobody can know by how much.
    right = train.states[:, 0, 0] > 0
    gusts = np.random.default_rng(0).normal(size=(int(right.sum()), 2)).astype(np.float32)
    train.states[right, 1:, 2] += gusts

    one, other = (
        MemberTrainer(i, toy_spec(), options, train, validation, tmp_path / str(i)).run()
        for i in range(2)
    )

    batch = torch.as_tensor(train.states[:, 0]), torch.as_tensor(train.actions[:, 0])
    lead = (one.predict(*batch)[1] - other.predict(*batch)[1]).detach().numpy()[:, 0]
    assert lead[right].mean() > 2 * abs(lead[~right].mean())


def test_an_error_is_that_of_the_last_step_that_goes_on() -> None:
    windows = toy_windows(50, 3, seed=1)
    model = WorldModel(4, 2, (32,), spec=toy_spec())
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()  # nothing ever changes
    going = (windows.valid & ~windows.terminated).sum(1)
    assert {1, 3} <= set(going.tolist())

    errors = rollout_errors(model, windows, toy_spec(), torch.device("cpu"))

    moved = windows.states[np.arange(50), going] - windows.states[:, 0]
    assert errors == pytest.approx(np.sqrt(np.square(moved).mean(1)), abs=1e-6)


def test_errors_of_neighbours_are_distances() -> None:
    spec = road_users_spec()
    assert spec.example is not None
    model = WorldModel(hidden_dims=(32,), spec=spec)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
    states = np.repeat(np.array(spec.example.state, np.float32)[None, None], 3, axis=1)
    for k, name in enumerate(("neighbour_1_dx", "neighbour_2_dy")):
        states[:, 2, spec.state_index(name)] += 3.0 * (k + 1)
    windows = replace(
        toy_windows(1, 2, seed=1),
        states=states,
        actions=np.zeros((1, 2, 3), np.float32),
        terminated=np.zeros((1, 2), np.bool_),
        valid=np.ones((1, 2), np.bool_),
    )

    errors = rollout_errors(model, windows, spec, torch.device("cpu"))

    assert errors == pytest.approx([(3 + 6 + 0) / 3])


def test_errors_are_computed_where_the_states_are() -> None:
    """On a GPU say; the device "meta" refuses what lies elsewhere, too."""
    spec, meta = road_users_spec(), torch.device("meta")
    model = WorldModel(hidden_dims=(32,), spec=spec).to(meta)
    states = torch.zeros(5, spec.state_dim, device=meta)
    assert end_errors(model, states, states, spec).device == meta


def test_a_run_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"options": "others"}))

    with pytest.raises(TrainingError, match="holds a run with other arguments or data"):
        fit(toy_parts(), toy_spec(), tmp_path / "out", tmp_path, QUICK, {})


LONG = replace(QUICK, stages=(Stage(1, 100_000, 8),), workers=2, validate_every=100)


def train_long(folder: str) -> None:
    """Train two members in processes, far too long."""
    at = Path(folder)
    try:
        with stoppable():
            parts = {name: toy_windows(100, 1, seed) for seed, name in enumerate(toy_parts())}
            fit(parts, toy_spec(), at / "out", at / "run", LONG, {})
    except Stopped as exc:
        print(exc, *exc.__notes__, sep="; ")
        sys.exit(exc.exit_code)


def start_long(folder: Path) -> Running:
    """Start `train_long`, and wait until both members have saved something new."""
    before = {path: path.stat().st_mtime_ns for path in folder.glob("run/member-*/state.pt")}
    code = (
        "from tests.test_training.test_fitting.test_train import train_long; "
        f"train_long({str(folder)!r})"
    )
    running = Running(code, folder)
    paths = [folder / "run" / f"member-{i}" / STATE for i in range(2)]
    running.until(lambda: all(p.exists() and p.stat().st_mtime_ns != before.get(p) for p in paths))
    return running


@pytest.mark.slow
def test_a_stopped_training_says_how_far_members_are_and_goes_on(tmp_path: Path) -> None:
    counts = []
    for number, to_group in ((signal.SIGINT, True), (signal.SIGTERM, False)):
        running = start_long(tmp_path)
        assert running.signal(number, to_group=to_group) == 128 + number

        message = running.output.splitlines()[-1]
        found = re.findall(r"member \d: ([\d,]+) of 100,000 updates done", message)
        counts.append([int(count.replace(",", "")) for count in found])
        saved = [updates_saved(tmp_path / "run" / f"member-{i}" / STATE) for i in range(2)]
        assert counts[-1] == saved
        assert message.startswith(f"Stopped by {number.name}; member 1: ")
        assert "Traceback" not in running.output
    assert all(after > before > 0 for before, after in zip(*counts, strict=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_training_leaves_no_worker_and_no_lock(tmp_path: Path) -> None:
    running = start_long(tmp_path)
    workers = running.workers()
    with pytest.raises(FolderLockedError, match=f"training, process {running.process.pid} on "):
        fit(toy_parts(), toy_spec(), tmp_path / "out", tmp_path / "run", LONG, {})

    running.signal(signal.SIGKILL, to_group=False)

    assert not still_there(workers)
    start_long(tmp_path).signal(signal.SIGINT, to_group=True)  # it goes on


def test_a_training_leaves_alone_an_output_that_another_command_writes(tmp_path: Path) -> None:
    options = replace(QUICK, stages=(Stage(1, 20, 32),))
    folders = tmp_path / "out", tmp_path / "run"

    with (
        locked(folders[0], "calibrating"),
        pytest.raises(FolderLockedError, match="another command: calibrating"),
    ):
        fit(toy_parts(), toy_spec(), *folders, options, {}, overwrite=True)

    version = fit(toy_parts(), toy_spec(), *folders, options, {})
    assert load_checkpoint(folders[0]).version == version


@pytest.mark.parametrize(
    ("out", "run", "message"),
    [
        ("a", "a", "holds the run's"),
        ("a", "b/../a/run", "holds the run's"),
        ("a/checkpoint", "a", "the run in .* writes itself"),
        ("a/windows/train", "a", "the run in .* writes itself"),
        ("a/member-0", "a", "the run in .* writes itself"),
    ],
)
def test_folders_that_fill_each_other_are_refused_before_anything_is_trained(
    tmp_path: Path, out: str, run: str, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        fit(few_parts(), toy_spec(), tmp_path / out, tmp_path / run, HASTY, {}, overwrite=True)
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_may_lie_in_the_run_that_makes_it(tmp_path: Path) -> None:
    version = fit(few_parts(), toy_spec(), tmp_path / "a" / "out", tmp_path / "a", HASTY, {})

    assert load_checkpoint(tmp_path / "a" / "out").version == version


def test_training_writes_over_its_own_checkpoint_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = replace(QUICK, stages=(Stage(1, 20, 32),))

    def run(overwrite: bool = False) -> str:
        return fit(
            toy_parts(),
            toy_spec(),
            tmp_path / "out",
            tmp_path / "run",
            options,
            {},
            overwrite=overwrite,
        )

    version = run()
    (tmp_path / "out" / "config.json").unlink()  # killed while writing
    assert run() == version
    assert run() == version
    other = load_checkpoint(tmp_path / "out")
    save_checkpoint(replace(other, name="calibrated since"), tmp_path / "out")

    with pytest.raises(OutputExistsError, match="is not empty"):
        run()
    assert load_checkpoint(tmp_path / "out").name == "calibrated since"
    assert run(overwrite=True) == version


def test_a_member_stops_between_updates(tmp_path: Path) -> None:
    options = TrainOptions(
        hidden_dims=(32,), stages=(Stage(2, 60, 8),), validate_every=20, device="cpu"
    )
    trainer = MemberTrainer(
        0, toy_spec(), options, toy_windows(50, 2, 1), toy_windows(50, 2, 2), tmp_path
    )
    whole = trainer._update

    def interrupted(update: int) -> dict[str, torch.Tensor]:
        if update == 30:
            signal.raise_signal(signal.SIGINT)  # before the weights are changed
        return whole(update)

    trainer._update = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt), stoppable():
        trainer.run()
    assert updates_saved(tmp_path / STATE) == 31

    trainer._update = whole  # type: ignore[method-assign]
    trainer.run()
    assert [entry["update"] for entry in trainer.state.history] == [20, 40, 60]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": 0}, "members must be at least 1"),
        ({"lead_steps": 0}, "lead_steps must be at least 1, got 0"),
        ({"miss_rate": float("nan")}, "miss_rate must be from 0.0001 to 0.5, got nan"),
        ({"miss_rate": 1.0}, r"miss_rate must be from 0.0001 to 0.5, got 1\.0"),
        ({"miss_rate": 1e-320}, r"miss_rate must be from 0.0001 to 0.5, got 1e-320"),
        ({"false_alarm_rate": 0.0}, "false_alarm_rate must be between 0 and 1"),
        ({"doubt_rate": 1.0}, "doubt_rate must be from 0 to below 1"),
        ({"doubt_rate": -0.1}, "doubt_rate must be from 0 to below 1"),
        ({"doubt_rate": float("nan")}, "doubt_rate must be from 0 to below 1"),
        ({"uncertainty_quantile": 99.9}, "uncertainty_quantile must be between 0 and 1"),
        ({"stages": ()}, "stages must not be empty"),
    ],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainOptions(**change)


HASTY = replace(QUICK, members=1, stages=(Stage(6, 1, 8),), validate_every=1)


def few_parts(calibration: int = 60) -> dict[str, Windows]:
    return {
        "train": toy_windows(60, 6, seed=1),
        "validation": toy_windows(60, 6, seed=2),
        "calibration": toy_windows(calibration, 6, seed=4),
    }


def test_few_episodes_are_told_before_and_after_training_and_give_no_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(few_parts(), toy_spec(), tmp_path / "out", tmp_path / "run", HASTY, {})

    before, after = capsys.readouterr().out.splitlines()
    for line in (before, after):
        assert "calibration episodes end in time" in line
        assert "99 are needed to guarantee a miss rate of 0.01" in line
    assert "the crash threshold will not be there" in before
    assert "safety checks answer unknown" in after
    assert load_checkpoint(tmp_path / "out").limits.crash_threshold is None


def test_limits_that_guarantee_nothing_can_be_asked_for_after_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on: its members do not depend on it."""
    for options in (HASTY, replace(HASTY, allow_unguaranteed=True)):
        fit(few_parts(), toy_spec(), tmp_path / "out", tmp_path / "run", options, {})

    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.limits.crash_threshold is not None
    assert loaded.limits.uncertainty_limit is not None or loaded.member_count == 1
    assert loaded.calibration.notes["allow_unguaranteed"] is True
    assert "which was asked for, guarantees nothing" in capsys.readouterr().out


def broken(part: str, **changes: Any) -> dict[str, Windows]:
    parts = few_parts()
    return {**parts, part: replace(parts[part], **changes)}


WINDOWS = few_parts()["train"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (few_parts(calibration=0), "windows for calibration hold none whose outcome is known"),
        (
            broken("validation", states=np.full((60, 7, 4), np.nan, np.float32)),
            "windows for validation hold states that are not finite",
        ),
        (
            broken("train", rewards=np.full((60, 6), np.inf, np.float32)),
            "windows for train hold rewards that are not finite",
        ),
        (
            broken("train", states=np.zeros((60, 7, 5), np.float32)),
            "windows for train have dims 5/2, the spec has 4/2",
        ),
        (
            {**few_parts(), "calibration": toy_windows(60, 3, seed=1)},
            "windows for calibration have 3 steps, the stages need 6",
        ),
    ],
    ids=["none", "states", "rewards", "dims", "horizon"],
)
def test_windows_that_make_no_sense_are_refused_before_anything_is_trained(
    tmp_path: Path, parts: dict[str, Windows], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        fit(parts, toy_spec(), tmp_path / "out", tmp_path / "run", HASTY, {})
    assert not (tmp_path / "run").exists()


def test_a_spec_that_makes_no_sense_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    spec = replace(toy_spec(), dt_s=float("nan"))

    with pytest.raises(CheckpointError, match="the spec: dt_s is nan, but"):
        fit(few_parts(), spec, tmp_path / "out", tmp_path / "run", HASTY, {})


def test_a_long_name_of_a_spec_does_not_end_a_training(tmp_path: Path) -> None:
    spec = replace(toy_spec(), name="n" * LONGEST_NAME)

    fit(few_parts(), spec, tmp_path / "out", tmp_path / "run", HASTY, {})

    assert load_checkpoint(tmp_path / "out").name == "n" * (LONGEST_NAME - 2) + "-1"


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint that knows 6 steps, and episodes of which some end."""
    folder = tmp_path_factory.mktemp("driven")
    save_store(folder / "store", mixed_episodes(24))
    torch.manual_seed(0)
    spec, architecture = highway_spec(), Architecture((16, 32))
    dim = spec.state_dim
    checkpoint = Checkpoint(
        WorldModelEnsemble.from_members([architecture.build(spec) for _ in range(2)]),
        spec,
        architecture,
        Calibration(0.2, 0.9, (-1e6,) * dim, (1e6,) * dim, horizon=6),
    )
    save_checkpoint(checkpoint, folder / "old")
    return folder / "old", folder / "store"


def test_recalibration_on_few_episodes_takes_the_threshold_and_says_so(
    driven: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recalibrate(*driven, tmp_path / "out", TrainOptions())

    new = load_checkpoint(tmp_path / "out")
    assert new.limits.crash_threshold is None
    assert new.calibration.horizon == 6  # not the options' 16, which nobody evaluated
    assert "99 are needed to guarantee a miss rate of 0.01" in capsys.readouterr().out


def test_recalibration_leaves_out_what_the_weights_were_fitted_to(
    driven: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the model's own data set its train part would vouch for a guarantee."""
    data = open_dataset(driven[1])
    trained = replace(load_checkpoint(driven[0]), training=origin_note(data) | {"split_seed": 3})
    save_checkpoint(trained, tmp_path / "old")
    train_part = data.split(3)["train"]

    recalibrate(tmp_path / "old", driven[1], tmp_path / "out", TrainOptions())

    said = capsys.readouterr().out
    assert f"{len(train_part)} of 24 episodes may have fixed the weights: they are left out" in said
    notes = load_checkpoint(tmp_path / "out").calibration.notes
    assert 0 < notes["episodes"] <= 24 - len(train_part)


UNGUARANTEED = TrainOptions(allow_unguaranteed=True)


def save_changed(
    driven: tuple[Path, Path], folder: Path, shift: float = 0.0, **calibration: Any
) -> Path:
    """Save the checkpoint with another calibration, which serves its threshold of .2."""
    old = load_checkpoint(driven[0])
    for member in old.ensemble.members:
        member.set_calibration(done_scale=1.0, done_shift=shift)
    calibration["notes"] = {"allow_unguaranteed": True}
    save_checkpoint(replace(old, calibration=replace(old.calibration, **calibration)), folder)
    return folder


def test_recalibration_tells_what_the_limits_do_before_and_after(
    driven: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = save_changed(driven, tmp_path / "old", shift=-4.0)

    options = replace(UNGUARANTEED, false_alarm_rate=0.9)
    recalibrate(old, driven[1], tmp_path / "out", options)

    said = capsys.readouterr().out
    assert re.search(
        r"Before: the threshold 0.2 is reached by [\d.]+ % of \d+ windows that end", said
    )
    assert re.search(r"After: the threshold [\d.]+ is reached by [\d.]+ % of \d+ windows", said)
    new = load_checkpoint(tmp_path / "out")
    before, after = (new.calibration.notes[name] for name in ("before", "after"))
    assert after["recall"] > before["recall"]
    assert before["ending"] == after["ending"] > 0
    assert after["threshold"] == new.limits.crash_threshold
    assert after["safe_of_ending"] <= before["safe_of_ending"]
    realised = new.calibration.notes["realised_false_alarm_rate"]
    assert after["false_alarms"] == pytest.approx(realised)


def test_a_threshold_that_loses_recall_is_refused_unless_asked_for(
    driven: tuple[Path, Path], tmp_path: Path
) -> None:
    old = save_changed(driven, tmp_path / "old")  # which expects an end at once, always
    out = tmp_path / "out"

    message = (
        r"windows that end, [\d.]+ % would reach the new threshold .*, 100 % reach the old one"
    )
    with pytest.raises(TrainingError, match=message):
        recalibrate(old, driven[1], out, UNGUARANTEED)
    assert not out.exists()

    recalibrate(old, driven[1], out, UNGUARANTEED, allow_lower_recall=True)
    assert load_checkpoint(out).calibration.notes["after"]["recall"] < 1


def test_a_calibration_without_a_threshold_loses_nothing(
    driven: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its verdicts are all unknown, none is safe."""
    old = save_changed(driven, tmp_path / "old")

    recalibrate(old, driven[1], tmp_path / "out", TrainOptions())

    assert "After: there is no crash threshold: every verdict is unknown" in capsys.readouterr().out


def test_known_ranges_become_those_of_the_recordings_if_asked_for(
    driven: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = highway_spec()
    bounds = np.full(spec.state_dim, 1e6)
    bounds[spec.state_index("speed")] = 1.0
    low, high = tuple(-bounds), tuple(bounds)
    old = save_changed(driven, tmp_path / "old", state_low=low, state_high=high)

    recalibrate(old, driven[1], tmp_path / "kept", UNGUARANTEED, allow_lower_recall=True)
    assert "known ranges" not in capsys.readouterr().out
    recalibrate(
        old, driven[1], tmp_path / "new", UNGUARANTEED, data_ranges=True, allow_lower_recall=True
    )

    said = capsys.readouterr().out
    assert "they are beyond what the weights were trained on: speed\n" in said
    kept, new = (load_checkpoint(tmp_path / x).calibration for x in ("kept", "new"))
    assert (kept.state_low, kept.state_high) == (low, high)
    windows = make_windows(load_store(driven[1]), np.arange(24), 6, 2)
    assert (windows.states[:, 0] >= np.array(new.state_low) - 1e-6).all()
    assert new.state_high[spec.state_index("speed")] > 1
    assert new.state_high[spec.state_index("left_edge")] < 1e6


def test_a_calibration_writes_over_nothing_that_came_meanwhile(
    driven: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with (
        locked(out, "importing"),
        pytest.raises(FolderLockedError, match="another command: importing"),
    ):
        recalibrate(*driven, out, TrainOptions(), overwrite=True)
    save_checkpoint(load_checkpoint(driven[0]), out)
    (out / "notes.txt").write_text("mine")

    with pytest.raises(OutputExistsError, match="is not empty"):
        recalibrate(*driven, out, TrainOptions())
    assert load_checkpoint(out).version == load_checkpoint(driven[0]).version


def test_a_long_name_of_a_checkpoint_does_not_end_a_calibration(
    driven: tuple[Path, Path], tmp_path: Path
) -> None:
    old = replace(load_checkpoint(driven[0]), name="n" * LONGEST_NAME)
    save_checkpoint(old, tmp_path / "old")

    recalibrate(tmp_path / "old", driven[1], tmp_path / "out", TrainOptions(), members=1)

    name = load_checkpoint(tmp_path / "out").name
    assert (len(name), name[-11:]) == (LONGEST_NAME, "-of-which-1")


def test_some_members_get_limits_of_their_own(driven: tuple[Path, Path], tmp_path: Path) -> None:
    options = TrainOptions(allow_unguaranteed=True)

    recalibrate(*driven, tmp_path / "all", options)
    recalibrate(*driven, tmp_path / "one", options, members=1)

    everyone, one = load_checkpoint(tmp_path / "all"), load_checkpoint(tmp_path / "one")
    assert (everyone.member_count, one.member_count, one.held_members) == (2, 1, None)
    assert one.limits.crash_threshold not in (None, everyone.limits.crash_threshold)
    assert one.name == f"{everyone.name}-of-which-1"
    assert one.version[:16] == one.version != everyone.version


def test_a_checkpoint_without_trained_ranges_gets_those_of_the_data(
    driven: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = replace(load_checkpoint(driven[0]), calibration=Calibration())
    save_checkpoint(bare, tmp_path / "imported")

    options = TrainOptions(allow_unguaranteed=True)
    recalibrate(tmp_path / "imported", driven[1], tmp_path / "out", options)

    new = load_checkpoint(tmp_path / "out")
    assert new.limits.crash_threshold is not None
    assert 0 < new.limits.state_high[0] < 60
    assert "notes no trained ranges: those of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt_s": 0.1}, "steps of 0.1 s against 0.05 s"),
        ({"frame": "forward-left-up"}, "the frame 'forward-left-up' against 'forward-right-down'"),
        ({"name": "renamed", "frame": None, "conventions": (), "example": None}, None),
    ],
)
def test_recalibration_compares_what_numbers_mean(
    driven: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    old = load_checkpoint(driven[0])
    save_checkpoint(replace(old, spec=replace(old.spec, **change)), tmp_path / "old")

    if message is None:
        recalibrate(tmp_path / "old", driven[1], tmp_path / "out", TrainOptions())
    else:
        with pytest.raises(TrainingError, match=f"has other features than .*: {message}"):
            recalibrate(tmp_path / "old", driven[1], tmp_path / "out", TrainOptions())


@pytest.mark.parametrize(
    ("windows", "is_quick", "updates", "rows"),
    [
        (400_000, False, CURRICULUM[2].updates, CURRICULUM[2].rows),
        (100_000, False, CURRICULUM[2].updates // 2, CURRICULUM[2].rows),
        (400_000, True, CURRICULUM[2].updates // 2, CURRICULUM[2].rows // 4),
        (1, True, 100, CURRICULUM[2].rows // 4),
    ],
)
def test_the_cost_is_in_proportion_to_the_data(
    windows: int, is_quick: bool, updates: int, rows: int
) -> None:
    options = TrainOptions(is_quick=is_quick).for_windows(windows)

    assert (options.stages[2].updates, options.stages[2].rows) == (updates, rows)
    tiny = TrainOptions(stages=(Stage(1, 7, 8),), is_quick=is_quick).for_windows(windows)
    assert tiny.stages[0].updates <= 7


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([0], "too few episodes to set some apart"),
        ([1, 4, 7, 10, 13, 16], "too few episodes that end"),
    ],
    ids=["one", "careful"],
)
def test_recalibration_needs_episodes_that_end(
    driven: tuple[Path, Path], tmp_path: Path, kept: list[int], message: str
) -> None:
    episodes = mixed_episodes(24)
    save_store(tmp_path / "store", [episodes[i] for i in kept])

    with pytest.raises(TrainingError, match=message):
        recalibrate(driven[0], tmp_path / "store", tmp_path / "out", TrainOptions())


def test_imported_weights_can_say_safe_once_they_are_calibrated(
    monkeypatch: pytest.MonkeyPatch, driven: tuple[Path, Path], tmp_path: Path
) -> None:
    # Untrained weights see contact everywhere.
    monkeypatch.setattr(safety_verdicts, "contact_reasons", lambda *_: {})
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for path in files:  # as the specification's own class writes them: without normalisers
        weights = WorldModel(hidden_dims=(32, 32), residual=False).state_dict()
        torch.save({name: x for name, x in weights.items() if "." in name}, path)
    save_checkpoint(import_weights(*files, spec=highway_spec()), tmp_path / "imported")

    options = TrainOptions(allow_unguaranteed=True)
    recalibrate(tmp_path / "imported", driven[1], tmp_path / "out", options)

    new, store = load_checkpoint(tmp_path / "out"), load_store(driven[1])
    windows = make_windows(store, np.arange(24), 16, 2)
    # The ranges are those of all episodes, be they of the part for probabilities or thresholds.
    assert (windows.states[:, 0] >= new.limits.state_low - 1e-6).all()
    assert (windows.states[:, 0] <= new.limits.state_high + 1e-6).all()
    found = predict_windows(new.ensemble, windows)
    limits = new.limits
    verdicts = assess(found.states, found.dones, found.uncertainty, limits, actions=windows.actions)
    assert {verdict.verdict for verdict in verdicts} >= {"safe", "unsafe"}


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
