from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from models.checkpoint import (
    Architecture,
    Calibration,
    Checkpoint,
    CheckpointError,
    checkpoint_version,
    load_checkpoint,
    save_checkpoint,
)
from models.network.ensemble import WorldModelEnsemble
from models.safety import SAFE, UNKNOWN, SafetyLimits, assess
from models.safety.expected_error import ExpectedError
from models.spec import anonymous_spec

NAN, INF = float("nan"), float("inf")

ONE_TREE = ExpectedError(
    feature=np.array([[0, 1, 2]], np.int32),
    threshold=np.array([[0.0, 5.0, INF]], np.float32),
    value=np.log(np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)),
    base=0.0,
)
"""Feature 0 up to 0: 1 or 2 m by feature 1; beyond: 3 m, whatever feature 2 is."""


def test_a_state_goes_left_up_to_the_threshold_and_right_beyond() -> None:
    states = np.array(
        [[0, 5, 0], [0, 5.1, 0], [-9, -9, 0], [0.1, 0, 0], [0.1, 99, 1e38]], np.float32
    )
    assert ONE_TREE(states) == pytest.approx([1, 2, 1, 3, 3])


def test_trees_and_the_base_add_up_in_logarithms() -> None:
    twice = ExpectedError(
        feature=np.tile(ONE_TREE.feature, (2, 1)),
        threshold=np.tile(ONE_TREE.threshold, (2, 1)),
        value=np.tile(ONE_TREE.value, (2, 1)),
        base=float(np.log(0.5)),
    )
    assert twice(np.array([[0.0, 9.0, 0.0], [1.0, 0.0, 0.0]])) == pytest.approx([2.0, 4.5])


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_a_state_s_number_does_not_depend_on_those_beside_it(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    trees = ExpectedError(
        rng.integers(0, 4, (50, 7), np.int32),
        rng.normal(size=(50, 7)).astype(np.float32),
        rng.normal(scale=0.02, size=(50, 8)).astype(np.float32),
        0.1,
    )
    states = rng.normal(size=(count, 4)).astype(np.float32)
    together = trees(states)
    assert [trees(states[k : k + 1])[0] for k in range(count)] == together.tolist()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"value": np.zeros((1, 3), np.float32)}, "3 leaves, not a power of 2"),
        ({"value": np.zeros((0, 4), np.float32)}, "1 to 1000 trees"),
        ({"value": np.zeros(4, np.float32)}, "1 to 1000 trees"),
        ({"value": np.full((1, 4), NAN, np.float32)}, "add up to nan"),
        ({"value": np.full((1, 4), 701, np.float32)}, "add up to 701"),
        ({"base": INF}, "add up to inf"),
        ({"threshold": np.full((1, 3), NAN, np.float32)}, "no numbers"),
        ({"threshold": np.zeros((1, 4), np.float32)}, r"shape \(1, 4\), not \(1, 3\)"),
        ({"feature": np.array([[0, -1, 2]], np.int32)}, "holds -1"),
    ],
)
def test_trees_that_make_no_sense_are_refused(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        replace(ONE_TREE, **change)


LIMITS = SafetyLimits(
    crash_threshold=0.5,
    uncertainty_limit=1.0,
    state_low=np.full(4, -np.inf),
    state_high=np.full(4, np.inf),
    horizon=4,
    feature_names=("dx", "dy", "c", "is_there"),
    dt_s=0.1,
    slots=np.array([(3, 0, 1)]),
    expected_error=ONE_TREE,
    error_limit_m=2.5,
)


def judged(
    states: list[list[float]], limits: SafetyLimits = LIMITS, is_there: float = 1.0
) -> list[Any]:
    given = np.array([[*state, is_there] for state in states], np.float32)
    rows = np.tile(given[:, None], (1, 2, 1))
    return assess(rows, np.zeros((len(rows), 1)), np.zeros(len(rows)), limits)


def test_verdicts_name_the_expected_error_of_their_own_start() -> None:
    found = judged([[0, 0, 0], [1, 0, 0], [0, 9, 0]])
    assert [x.expected_error_m for x in found] == pytest.approx([1, 3, 2])
    assert [x.verdict for x in found] == [SAFE, UNKNOWN, SAFE]
    (reason,) = found[1].reasons
    assert reason.rule == "uncertain"
    assert reason.message == (
        "neighbours are expected to be 3.00 m from where they are predicted, more than the limit "
        "2.50 m"
    )


def test_sequences_from_one_state_share_its_expected_error() -> None:
    found = judged([[1, 0, 0]] * 3)
    assert [x.expected_error_m for x in found] == pytest.approx([3, 3, 3])
    assert {x.verdict for x in found} == {UNKNOWN}


def test_without_trees_nothing_is_expected() -> None:
    (found,) = judged([[1, 0, 0]], replace(LIMITS, expected_error=None, error_limit_m=None))
    assert (found.verdict, found.expected_error_m) == (SAFE, None)


def test_an_expected_error_without_a_limit_is_doubted_unless_nobody_is_there() -> None:
    unlimited = replace(LIMITS, error_limit_m=None)
    (found,) = judged([[1, 0, 0]], unlimited)
    assert (found.verdict, found.expected_error_m) == (UNKNOWN, pytest.approx(3))
    assert [reason.rule for reason in found.reasons] == ["uncertainty_unavailable"]
    (alone,) = judged([[1, 0, 0]], unlimited, is_there=0.0)
    assert (alone.verdict, alone.expected_error_m) == (SAFE, None)


def test_of_nobody_no_error_is_expected() -> None:
    (found,) = judged([[1, 0, 0]], is_there=0.0)
    assert (found.verdict, found.expected_error_m) == (SAFE, None)


def test_many_rows_are_computed_as_few_are() -> None:
    states = np.random.default_rng(0).normal(size=(5000, 3))
    alone = np.concatenate([ONE_TREE(states[k : k + 10]) for k in range(0, 5000, 10)])
    assert ONE_TREE(states).tolist() == alone.tolist()


@pytest.mark.parametrize("limit", [NAN, INF, -INF, -1.0, 0.0])
def test_a_limit_that_makes_no_sense_never_makes_a_verdict_safe(limit: float) -> None:
    (found,) = judged([[0, 0, 0]], replace(LIMITS, error_limit_m=limit))
    assert found.verdict == UNKNOWN


def test_a_limit_without_trees_never_makes_a_verdict_safe() -> None:
    (found,) = judged([[0, 0, 0]], replace(LIMITS, expected_error=None))
    assert found.verdict == UNKNOWN
    assert [x.rule for x in found.reasons] == ["uncertainty_unavailable"]


def test_an_expected_error_that_reads_more_than_the_state_is_refused() -> None:
    two = replace(LIMITS, expected_error=None, slots=np.zeros((0, 3), np.int64))
    changes = {"feature_names": ("a", "b"), "state_low": np.zeros(2), "state_high": np.ones(2)}
    with pytest.raises(ValueError, match="reads 3 features, the state has 2"):
        replace(two, **changes, expected_error=ONE_TREE)  # type: ignore[arg-type]


@pytest.fixture
def checkpoint() -> Checkpoint:
    spec, small = anonymous_spec(5, 2), Architecture(hidden_dims=(16, 32))
    return Checkpoint(WorldModelEnsemble.from_members([small.build(spec)]), spec, small)


def test_a_checkpoint_keeps_its_trees(checkpoint: Checkpoint, tmp_path: Path) -> None:
    before = save_checkpoint(checkpoint, tmp_path)
    after = save_checkpoint(replace(checkpoint, expected_error=ONE_TREE), tmp_path)
    assert before != after
    found = load_checkpoint(tmp_path).expected_error
    assert found is not None
    states = np.random.default_rng(0).normal(size=(9, checkpoint.spec.state_dim))
    assert found(states).tolist() == ONE_TREE(states).tolist()
    assert save_checkpoint(checkpoint, tmp_path) == before == checkpoint_version(tmp_path)
    assert load_checkpoint(tmp_path).expected_error is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"feature": None}, "lacks the tensor feature"),
        ({"other": np.zeros(1)}, "holds other, which trees do not have"),
        ({"value": np.zeros((1, 4))}, "holds value as torch.float64, not torch.float32"),
        ({"base": np.zeros(1)}, r"holds base of shape \(1,\), not one number"),
        ({"base": np.array(NAN)}, "add up to nan"),
        ({"feature": np.full((1, 3), 99, np.int32)}, "feature holds 99, the spec has"),
        ({"threshold": np.full((1, 3), NAN, np.float32)}, "no numbers"),
    ],
)
def test_damaged_trees_stop_the_loading(
    checkpoint: Checkpoint, tmp_path: Path, change: dict[str, Any], fault: str
) -> None:
    save_checkpoint(replace(checkpoint, expected_error=ONE_TREE), tmp_path)
    path = tmp_path / "expected_error.safetensors"
    tensors = {k: x for k, x in {**load_file(path), **change}.items() if x is not None}
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=fault):
        load_checkpoint(tmp_path)


def test_a_limit_whose_trees_were_not_copied_stops_the_loading(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    calibration = Calibration(error_limit_m=1.5)
    save_checkpoint(replace(checkpoint, expected_error=ONE_TREE, calibration=calibration), tmp_path)
    (tmp_path / "expected_error.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"error_limit_m is 1\.5, but there is no .*expected"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\xff" * 8 + b"{}"])
def test_a_file_that_is_no_safetensors_stops_the_loading(
    checkpoint: Checkpoint, tmp_path: Path, content: bytes
) -> None:
    save_checkpoint(replace(checkpoint, expected_error=ONE_TREE), tmp_path)
    (tmp_path / "expected_error.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot read .*expected_error\.safetensors"):
        load_checkpoint(tmp_path)
