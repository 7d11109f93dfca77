"""Few data guarantee nothing: no threshold comes of them, or one that was asked for by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.checkpoint import Architecture, Calibration
from models.checkpoint.calibration import DONE_SCALES, DONE_SHIFTS
from models.network.ensemble import WorldModelEnsemble
from models.safety.expected_error import ExpectedError
from tests.test_training.toy import toy_spec, toy_windows
from training.dataset.windows import Windows
from training.fitting import calibrate as calibration_module
from training.fitting.calibrate import (
    calibrate,
    fit_hazard,
    fit_platt,
    predict_windows,
    summary,
    trained_ranges,
)
from training.fitting.options import TrainOptions

HORIZON = 6
OPTIONS = TrainOptions(hidden_dims=(32,), miss_rate=0.05)  # 19 episodes carry a guarantee


def ensemble(seed: int = 0) -> WorldModelEnsemble:
    torch.manual_seed(seed)
    architecture = Architecture((32,))
    return WorldModelEnsemble.from_members([architecture.build(toy_spec()) for _ in range(2)])


def windows(ending: int, harmless: int) -> Windows:
    """So many of each kind, all an episode of their own; those that end do so at the last step."""
    pool = toy_windows(2000, HORIZON, seed=5)
    late = pool.terminated.argmax(1) == HORIZON - 1
    ends, stays = np.flatnonzero(pool.ends & late), np.flatnonzero(~pool.ends)
    assert len(ends) >= ending or not ending
    return pool.take(np.concatenate([np.resize(ends, ending), np.resize(stays, harmless)]))


def calibrated(
    calibration: Windows,
    validation: Windows | None = None,
    expected_error: ExpectedError | None = None,
    **options: object,
) -> Calibration:
    validation = toy_windows(200, HORIZON, seed=6) if validation is None else validation
    return calibrate(
        ensemble(),
        trained_ranges(validation),
        validation,
        replace(calibration, episode=np.arange(len(calibration))),
        replace(OPTIONS, **options),  # type: ignore[arg-type]
        toy_spec(),
        expected_error,
    )


def test_enough_episodes_give_a_threshold_that_keeps_its_guarantee() -> None:
    calibration = calibrated(windows(19, 1100))

    assert calibration.guarantee is not None
    assert calibration.guarantee.episodes == calibration.guarantee.episodes_needed == 19
    assert calibration.guarantee.holds_for(calibration.crash_threshold)
    assert calibration.crash_threshold == calibration.served_threshold
    assert calibration.uncertainty_limit is not None
    assert "19 are needed" in summary(calibration)
    assert "keeps that guarantee" in summary(calibration)


@pytest.mark.parametrize(
    ("ending", "harmless"),
    [(18, 1100), (1, 1100), (0, 1100), (19, 0), (0, 1), (1, 0)],
)
def test_few_data_give_no_threshold(ending: int, harmless: int) -> None:
    calibration = calibrated(windows(ending, harmless))

    assert calibration.crash_threshold is None
    assert calibration.notes["realised_false_alarm_rate"] is None
    assert f"{ending} calibration episodes end in time" in summary(calibration)
    assert "19 are needed" in summary(calibration)
    assert "safety checks answer unknown" in summary(calibration)


def test_a_threshold_without_a_guarantee_is_there_if_asked_for_and_says_so() -> None:
    calibration = calibrated(windows(18, 50), allow_unguaranteed=True)

    assert calibration.guarantee is not None
    assert calibration.guarantee.threshold is None
    assert calibration.crash_threshold is not None
    assert calibration.served_threshold == calibration.crash_threshold
    assert calibration.crash_threshold <= 0.5
    assert calibration.uncertainty_limit is not None
    assert calibration.notes["allow_unguaranteed"] is True
    assert "which was asked for, guarantees nothing" in summary(calibration)


def test_no_harmless_windows_give_no_threshold_even_if_asked_for() -> None:
    assert calibrated(windows(30, 0), allow_unguaranteed=True).crash_threshold is None


@pytest.mark.parametrize(("count", "is_there"), [(999, False), (1000, True)])
def test_few_windows_give_no_uncertainty_limit(count: int, is_there: bool) -> None:
    calibration = calibrated(windows(20, count - 20))

    assert (calibration.uncertainty_limit is not None) is is_there
    assert ("no uncertainty limit" in summary(calibration)) is not is_there


FIRST_FEATURE = ExpectedError(
    feature=np.zeros((1, 1), np.int32),
    threshold=np.zeros((1, 1), np.float32),
    value=np.log(np.array([[1.0, 3.0]], np.float32)),
    base=0.0,
)
"""1 m where the first feature is not above 0, else 3 m."""


@pytest.mark.parametrize(("quantile", "limit_m"), [(0.9, 3.0), (0.1, 1.0)])
def test_the_limit_of_the_expected_error_is_a_quantile(quantile: float, limit_m: float) -> None:
    given = windows(20, 1100)
    above = np.arange(len(given)) % 2 == 0
    given.states[:, 0, 0] = np.where(above, 1.0, -1.0)
    found = calibrated(given, expected_error=FIRST_FEATURE, error_quantile=quantile)
    assert found.error_limit_m == found.served_error_limit_m == pytest.approx(limit_m)


def test_few_windows_or_no_trees_give_no_limit_of_the_expected_error() -> None:
    assert calibrated(windows(20, 1100)).error_limit_m is None
    assert calibrated(windows(20, 70), expected_error=FIRST_FEATURE).error_limit_m is None
    asked_for = calibrated(windows(20, 70), expected_error=FIRST_FEATURE, allow_unguaranteed=True)
    assert asked_for.served_error_limit_m is not None


def test_the_horizon_is_that_of_the_windows_not_of_the_options() -> None:
    assert OPTIONS.horizon == 16
    assert calibrated(windows(19, 100)).horizon == HORIZON


def fitted(logits: NDArray[np.floating], terminated: NDArray[np.bool_]) -> tuple[float, float]:
    """Of two members that say the same."""
    members = torch.as_tensor(np.stack([logits] * 2), dtype=torch.float32)
    return fit_platt(members, torch.as_tensor(terminated))


def sigmoid(logits: NDArray[np.floating], scale: float, shift: float) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-(scale * logits + shift))))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([1e-3, 1.0, 10.0, 1e3, 1e30]),
    st.sampled_from([-1.0, 0.0, 1.0]),
)
def test_a_fit_is_bounded_whatever_the_logits_say(
    ending: int, harmless: int, size: float, sign: float
) -> None:
    """Separable data, the wrong way round, or data that tell nothing, of any size."""
    terminated = np.zeros((ending + harmless, HORIZON), bool)
    terminated[:ending, -1] = True
    logits = sign * size * np.where(terminated, 1.0, -1.0)

    scale, shift = fitted(logits, terminated)

    assert DONE_SCALES[0] <= scale <= DONE_SCALES[1]
    assert DONE_SHIFTS[0] <= shift <= DONE_SHIFTS[1]
    if sign == 1.0 and 1.0 <= size <= 10.0:
        # Separable outcomes are as sure as their number makes them.
        hazards = sigmoid(logits, scale, shift)
        assert 1e-4 < hazards.min() < 0.1 < hazards.max() < 1 - 1e-4


def test_a_fit_finds_the_map_that_made_the_outcomes() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(-2, 2, (6000, 1)) + rng.normal(0, 0.5, (6000, HORIZON))
    drawn = rng.random(logits.shape) < sigmoid(logits, 0.7, -1.0)

    scale, shift = fitted(logits, drawn & (np.cumsum(drawn, axis=1) == 1))

    assert scale == pytest.approx(0.7, abs=0.04)
    assert shift == pytest.approx(-1.0, abs=0.06)


@pytest.mark.parametrize(("ending", "harmless"), [(0, 20), (20, 0)])
def test_one_kind_of_outcome_fits_nothing(ending: int, harmless: int) -> None:
    assert fit_hazard(ensemble(), windows(ending, harmless)) == (1.0, 0.0)


def test_a_diverged_model_is_not_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ensemble()
    next(broken.members).decoder.bias.data.fill_(torch.nan)
    data = windows(20, 20)

    with pytest.raises(ValueError, match="not finite: it has diverged"):
        calibrate(broken, trained_ranges(data), data, data, OPTIONS, toy_spec())
    monkeypatch.setattr(calibration_module, "fit_hazard", lambda *_: (1.0, 0.0))
    with pytest.raises(ValueError, match="not finite: it has diverged"):
        calibrate(broken, trained_ranges(data), data, data, OPTIONS, toy_spec())


def answer_always(done: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model answer the same `done` at every step."""

    def answered(model: WorldModelEnsemble, part: Windows) -> calibration_module.Prediction:
        prediction = predict_windows(model, part)
        return replace(prediction, dones=np.full_like(prediction.dones, done))

    monkeypatch.setattr(calibration_module, "predict_windows", answered)


def test_an_episode_that_was_certain_not_to_end_leaves_no_threshold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guarantee would need a threshold of 0, which tells nothing apart."""
    answer_always(0.0, monkeypatch)

    assert calibrated(windows(20, 1100)).crash_threshold is None


def test_a_threshold_is_never_above_one_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is more likely to crash than not is never safe, whatever the rates asked for allow."""
    answer_always(1.0, monkeypatch)
    calibration = calibrated(windows(20, 1100))

    assert calibration.notes["false_alarm_threshold"] == 1.0
    assert calibration.crash_threshold == 0.5


def answer(probability: NDArray[np.floating], monkeypatch: pytest.MonkeyPatch) -> Windows:
    """Let the model answer 20 windows that end with .9, and others as given; return all."""

    def answered(model: WorldModelEnsemble, part: Windows) -> calibration_module.Prediction:
        prediction = predict_windows(model, part)
        dones = np.zeros_like(prediction.dones)
        dones[:, 0] = np.concatenate([np.full(20, 0.9), probability])
        return replace(prediction, dones=dones)

    monkeypatch.setattr(calibration_module, "predict_windows", answered)
    return windows(20, len(probability))


STEPS = np.repeat([0.01, 0.02, 0.03, 0.2], [700, 300, 90, 10])


@pytest.mark.parametrize(
    ("probability", "rate", "undecided"),
    [
        (np.linspace(0.001, 0.3, 1100), 0.01, 11),
        (np.linspace(0.001, 0.3, 1100), 0.1, 110),
        (np.linspace(0.001, 0.3, 1100), 0.5, 550),
        (np.linspace(0.001, 0.3, 1100), 0.0, 0),
        (np.linspace(0.001, 0.3, 90), 0.01, 0),
        (np.linspace(0.001, 0.3, 110), 0.01, 1),
        (STEPS, 0.01, 0),
        (STEPS, 0.08, 0),
        (STEPS, 0.09, 90),
        (STEPS, 0.35, 90),
        (STEPS, 0.36, 390),
        (STEPS, 0.999, 1090),
        (np.full(1100, 0.02), 0.999, 0),
        (np.zeros(1100), 0.01, 0),
    ],
    ids=lambda value: str(value) if isinstance(value, int | float) else str(len(value)),
)
def test_at_most_a_share_of_harmless_windows_is_just_below_the_threshold(
    probability: NDArray[np.floating],
    rate: float,
    undecided: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of equal windows all are, or none is."""
    given_windows = answer(probability, monkeypatch)
    calibration = calibrated(given_windows, doubt_rate=rate, false_alarm_rate=0.005)
    threshold, bound = calibration.crash_threshold, calibration.safe_below

    assert threshold is not None
    assert calibration.notes["doubt_rate"] == rate
    assert (bound is None) is (undecided == 0)
    if bound is not None:
        assert 0 < bound < threshold
        stored = np.float64(np.float32(probability))
        assert (
            (stored >= bound * (1 - 1e-9)) & (stored < threshold * (1 - 1e-9))
        ).sum() == undecided
        assert undecided <= rate * len(probability)
        assert f"from {bound:.4g} on none is called safe" in summary(calibration)
        assert f"at most {rate:g} of them are unknown for that" in summary(calibration)
    else:
        assert "called safe" not in summary(calibration)


def test_there_is_no_lower_bound_without_a_threshold() -> None:
    calibration = calibrated(windows(18, 1100), doubt_rate=0.5)

    assert (calibration.crash_threshold, calibration.safe_below) == (None, None)
    assert "called safe" not in summary(calibration)
