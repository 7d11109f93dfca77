from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.ensemble import GradientBoostingRegressor

from models.checkpoint import Architecture
from models.network.ensemble import WorldModelEnsemble
from models.road_users import road_users_spec
from models.spec import Spec, anonymous_spec
from training.dataset.windows import Windows
from training.fitting import expected_error
from training.fitting.expected_error import fit_expected_error, scaled

SPEC = road_users_spec()
HEADING, LENGTH, DX = (
    SPEC.state_index(f"neighbour_1_{name}") for name in ("heading", "length", "dx")
)
STEPS = 2
RNG = np.random.default_rng(0)


def windows(count: int) -> Windows:
    """Windows with one neighbour; most drive straight on, to a milliradian."""
    states = np.zeros((count, STEPS + 1, SPEC.state_dim), np.float32)
    states[:, :, LENGTH] = 5.0
    straight = RNG.random((count, 1)) < 0.5
    heading = np.where(straight, RNG.normal(0, 0.0005, (count, 1)), RNG.normal(0, 1, (count, 1)))
    states[:, :, HEADING] = heading
    zeros = np.zeros((count, STEPS), np.float32)
    index = np.arange(count)
    return Windows(
        states=states,
        actions=np.zeros((count, STEPS, SPEC.action_dim), np.float32),
        rewards=zeros,
        terminated=zeros.astype(bool),
        valid=~zeros.astype(bool),
        episode=index,
        environment=index.astype(np.uint8),
        behaviour=index.astype(np.uint8),
        start_step=index,
    )


def ensemble(spec: Spec = SPEC) -> WorldModelEnsemble:
    architecture = Architecture(hidden_dims=(8, 32))
    return WorldModelEnsemble.from_members([architecture.build(spec)])


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose errors are 0.1 m for who drives straight on, and 2 m for who does not."""

    def predicted(ensemble: WorldModelEnsemble, given: Windows) -> SimpleNamespace:
        states = np.array(given.states)
        turned = np.abs(states[:, 0, HEADING]) > 0.002
        states[:, -1, DX] += np.where(turned, 2.0, 0.1)
        return SimpleNamespace(states=states)

    monkeypatch.setattr(expected_error, "predict_windows", predicted)


@pytest.mark.usefixtures("errors")
def test_trees_learn_where_the_model_errs_on_the_scale_of_a_milliradian() -> None:
    found = fit_expected_error(ensemble(), SPEC, windows(3000), windows(500), seed=0)
    assert found is not None
    test = windows(500).states[:, 0]
    expected, turned = found(test), np.abs(test[:, HEADING]) > 0.002
    assert spearmanr(expected, turned).statistic > 0.8
    assert np.median(expected[turned]) == pytest.approx(2.0, rel=0.1)
    assert np.median(expected[~turned]) == pytest.approx(0.1, rel=0.1)


@pytest.mark.usefixtures("errors")
def test_it_is_right_on_average_on_other_windows() -> None:
    other = windows(500)
    found = fit_expected_error(ensemble(), SPEC, windows(3000), other, seed=0)
    assert found is not None
    turned = np.abs(other.states[:, 0, HEADING]) > 0.002
    mean = np.where(turned, 2.0, 0.1).mean()
    assert found(other.states[:, 0]).mean() == pytest.approx(mean, rel=1e-5)


@pytest.mark.usefixtures("errors")
def test_the_same_windows_and_seed_make_the_same_trees() -> None:
    train, other = windows(1500), windows(200)
    one, two = (fit_expected_error(ensemble(), SPEC, train, other, seed=3) for _ in range(2))
    assert one is not None
    assert two is not None
    assert np.array_equal(one.value, two.value)
    assert one.base == two.base


@pytest.mark.usefixtures("errors")
def test_too_few_windows_make_no_trees() -> None:
    assert fit_expected_error(ensemble(), SPEC, windows(999), windows(500), seed=0) is None
    assert fit_expected_error(ensemble(), SPEC, windows(3000), windows(99), seed=0) is None


@pytest.mark.usefixtures("errors")
def test_windows_that_end_count_for_nothing() -> None:
    train, other = windows(1500), windows(200)
    train.terminated[:600, 0] = True
    assert fit_expected_error(ensemble(), SPEC, train, other, seed=0) is None


def test_trees_are_scaled_to_other_windows_or_left_as_they_are(errors: None) -> None:
    del errors
    given = windows(2000)
    found = fit_expected_error(ensemble(), SPEC, given, windows(500), seed=0)
    assert found is not None
    turned = np.abs(given.states[:, 0, HEADING]) > 0.002
    other = given.take(turned)
    rescaled = scaled(found, ensemble(), SPEC, other)
    assert rescaled(other.states[:, 0]).mean() == pytest.approx(2.0, rel=1e-5)
    empty = np.array(other.states)
    empty[..., LENGTH] = 0
    assert scaled(found, ensemble(), SPEC, replace(other, states=empty)) is found
    assert scaled(found, ensemble(), SPEC, other.take(slice(0, 0))) is found


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_said_to_be(
    monkeypatch: pytest.MonkeyPatch, number: float
) -> None:
    def predicted(ensemble: WorldModelEnsemble, given: Windows) -> SimpleNamespace:
        states = np.array(given.states)
        states[7, -1, DX] = number
        return SimpleNamespace(states=states)

    monkeypatch.setattr(expected_error, "predict_windows", predicted)
    with pytest.raises(ValueError, match="it has diverged"):
        fit_expected_error(ensemble(), SPEC, windows(1500), windows(200), seed=0)


def test_features_without_neighbours_make_no_trees() -> None:
    spec = anonymous_spec(SPEC.state_dim, SPEC.action_dim)
    assert fit_expected_error(ensemble(spec), spec, windows(3000), windows(500), seed=0) is None


def test_exported_trees_answer_as_those_they_are_of() -> None:
    states = RNG.normal(size=(2000, 5)).astype(np.float32)
    # Values that thresholds lie between, next to one another as floats.
    states[::2, 0] = np.nextafter(np.float32(1), np.float32(2))
    states[1::2, 0] = 1
    target = states[:, 0] * 1e6 + np.sin(states[:, 1]) + states[:, 2] * states[:, 3]
    target = (target - target.mean()) / target.std()
    boosted = GradientBoostingRegressor(
        n_estimators=expected_error._TREES,
        max_depth=expected_error._DEPTH,
        subsample=0.5,
        random_state=0,
    ).fit(states, target)
    found = expected_error._exported(boosted, 5)
    assert np.log(found(states)) == pytest.approx(boosted.predict(states), abs=1e-5)
