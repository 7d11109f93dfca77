"""Parts of an evaluation that need the simulator, or physics of the features of `highway_spec`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.backends.cpus import usable_cpus
from models.highway import highway_spec
from training.dataset.collect import ENVIRONMENT_SHARES, collect
from training.dataset.store import load_store
from training.dataset.windows import UNSEEN_ENVIRONMENT, Windows, make_windows
from training.evaluation.baselines import BASELINES, FULL_PHYSICS
from training.evaluation.branches import choice_scores, make_branches
from training.evaluation.judgements import STRIDE, Trial, compare_risks, methods, trust
from training.evaluation.state_errors import deviation_sd, divergence
from training.evaluation.stress import adversarial_actions, random_actions
from training.evaluation.verdicts import corruption_scores, one_an_episode
from training.fitting.calibrate import predict_windows
from training.simulation.behaviours import SEQUENCE_KINDS

Floats = NDArray[np.floating[Any]]

SHAKEN_WINDOWS = 20_000
ATTACKED_WINDOWS = 512
CORRUPTED_WINDOWS = 1024
PROVOKED_SEED = 9_000_000
"""Of the drives among sudden drivers; no data set is expected to be collected with it."""

_TRAINED_SHARES = {k: x for k, x in ENVIRONMENT_SHARES.items() if k != UNSEEN_ENVIRONMENT}


def elsewhere(unseen: Trial, parts: dict[str, Any]) -> dict[str, Any] | None:
    """Judge all methods on roads that no one was fitted to.

    Args:
        unseen: Windows there.
        parts: Receives the comparison of risks as `unseen`.

    Returns:
        None if all windows there have the same outcome.
    """
    if not unseen.has_both_outcomes:
        return None
    table, risks, _ = methods(unseen)
    parts["unseen"] = compare_risks(unseen, risks, unseen.windows)
    return {"environment": UNSEEN_ENVIRONMENT, "methods": table, **trust(unseen)}


def provoked(trial: Trial, transitions: int, parts: dict[str, Any]) -> None:
    """Judge all methods on crashes with cars that did something sudden.

    On the roads of the data set are drivers of whom every one has a sudden manoeuvre in store.
    Their harmless windows stay beside the crashes; windows that end for other reasons are left out.

    Args:
        trial: Whose lineup is judged.
        transitions: To simulate, at least; 0 for none.
        parts: Receives the comparison of risks as `provoked`, if there is such a crash.
    """
    if transitions == 0:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        collect(
            folder,
            transitions=transitions,
            seed=PROVOKED_SEED,
            environments=_TRAINED_SHARES,
            surprising_share=1.0,
            progress=False,
        )
        store = load_store(folder)
    episodes = np.arange(len(store.provoked))
    windows = make_windows(store, episodes, trial.windows.horizon, STRIDE)
    is_provoked = store.provoked[windows.episode] > 0
    windows = windows.take(windows.is_known & (is_provoked | ~windows.ends))
    if windows.ends.any():
        parts["provoked"] = compare_risks(trial, trial.lineup.risks(windows), windows)


def branches(trial: Trial, states: int, parts: dict[str, Any]) -> dict[str, Any] | None:
    """Judge all methods on several futures of the same states.

    Args:
        trial: Whose lineup is judged.
        states: Number of states; 0 for none.
        parts: Receives the comparison of risks as `branches`.
    """
    if states == 0:
        return None
    workers = usable_cpus()
    windows = make_branches(states, trial.windows.horizon, _TRAINED_SHARES, workers=workers)
    risks = trial.lineup.risks(windows)
    parts["branches"] = compare_risks(trial, risks, windows)
    return choice_scores(risks, windows, trial.bootstrap)


def divergences(trial: Trial) -> dict[str, Any]:
    """Count rollouts that leave physics, where nobody knows the truth.

    Random and adversarial actions on some of the windows, against `FULL_PHYSICS`.
    """
    checkpoint = trial.lineup.checkpoint
    some = one_an_episode(trial.windows, ATTACKED_WINDOWS)
    attacked = adversarial_actions(checkpoint.ensemble, highway_spec(), some, trial.scale)
    step = -(-len(trial.all_windows) // SHAKEN_WINDOWS)
    shaken, kinds = random_actions(trial.all_windows.take(slice(None, None, step)))
    deviation = _from_physics(trial, shaken)
    return {
        **{kind: divergence(deviation[kinds == i]) for i, kind in enumerate(SEQUENCE_KINDS)},
        "adversarial": divergence(_from_physics(trial, attacked)),
    }


def _from_physics(trial: Trial, windows: Windows) -> Floats:
    """Return how far the model gets from physics on windows [N], in standard deviations."""
    predicted = predict_windows(trial.lineup.checkpoint.ensemble, windows).states
    physics = BASELINES[FULL_PHYSICS](windows).states
    assert physics is not None, "physics predicts states"
    return deviation_sd(predicted, physics, trial.scale, np.ones_like(windows.valid))


def corruptions(trial: Trial) -> dict[str, Any]:
    """Return whether the model notices wrong states."""
    some = one_an_episode(trial.windows, CORRUPTED_WINDOWS)
    return corruption_scores(trial.lineup.checkpoint, some, trial.bootstrap)
