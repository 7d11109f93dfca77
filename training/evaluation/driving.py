"""Parts of an evaluation that need the simulator, or physics of the features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.backends.cpus import usable_cpus
from training.dataset.collect import collect
from training.dataset.sources import fleet_of
from training.dataset.store import load_store
from training.dataset.windows import Windows, make_windows
from training.evaluation.baselines import FULL_PHYSICS, baselines_of
from training.evaluation.branches import choice_scores, make_branches
from training.evaluation.judgements import STRIDE, Trial, compare_risks, methods, trust
from training.evaluation.state_errors import deviation_sd, divergence
from training.evaluation.stress import adversarial_actions, random_actions
from training.evaluation.verdicts import corruption_scores, one_an_episode
from training.fitting.calibrate import predict_windows
from training.simulation.behaviours import SEQUENCE_KINDS
from training.simulation.simulator import trained_roads

Floats = NDArray[np.floating[Any]]

SHAKEN_WINDOWS = 20_000
ATTACKED_WINDOWS = 512
CORRUPTED_WINDOWS = 1024
PROVOKED_SEED = 9_000_000
"""Of the drives among sudden drivers; no data set is expected to be collected with it."""

_ROADS = trained_roads("highway-env")


def elsewhere(unseen: Trial) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Judge all methods on roads that no one was fitted to.

    Args:
        unseen: Windows there.

    Returns:
        The results, and the comparison of risks; None if all windows have the same outcome.
    """
    if not unseen.has_both_outcomes:
        return None, None
    table, risks, _ = methods(unseen)
    environments = unseen.data.labels.environments
    roads = [environments[code] for code in np.unique(unseen.windows.environment)]
    results = {"environment": ", ".join(roads), "methods": table, **trust(unseen)}
    return results, compare_risks(unseen, risks, unseen.windows)


def provoked(
    trial: Trial, transitions: int, folder: Path, on_share: Callable[[float], object]
) -> dict[str, Any] | None:
    """Judge all methods on crashes with cars that did something sudden.

    On the roads of the data set are drivers of whom every one has a sudden manoeuvre in store.
    Their harmless windows stay beside the crashes; windows that end for other reasons are left out.

    Args:
        trial: Whose lineup is judged.
        transitions: To simulate, at least; 0 for none.
        folder: Working folder; another call with the same arguments goes on from what is there.
        on_share: Called with the share of them that is done, now and then.

    Returns:
        The comparison of risks; None if there is no such crash.
    """
    if transitions == 0:
        return None
    collect(
        folder,
        transitions=transitions,
        seed=PROVOKED_SEED,
        environments=_ROADS,
        surprising_share=1.0,
        fleet=fleet_of(trial.data.manifest),
        progress=False,
        on_transitions=lambda done: on_share(min(1.0, done / transitions)),
    )
    store = load_store(folder)
    episodes = np.arange(len(store.provoked))
    windows = make_windows(store, episodes, trial.windows.horizon, STRIDE, spec=trial.spec)
    is_provoked = store.provoked[windows.episode] > 0
    windows = windows.take(windows.is_known & (is_provoked | ~windows.ends))
    if not windows.ends.any():
        return None
    return compare_risks(trial, trial.lineup.risks(windows), windows)


def branches(
    trial: Trial, states: int, folder: Path, on_share: Callable[[float], object]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Judge all methods on several futures of the same states.

    Args:
        trial: Whose lineup is judged.
        states: Number of states; 0 for none.
        folder: Working folder; another call with the same arguments goes on from what is there.
        on_share: Called with the share of them that is done, now and then.

    Returns:
        The choices between futures, and the comparison of risks; None without states.
    """
    if states == 0:
        return None, None
    windows = make_branches(
        folder,
        states,
        trial.windows.horizon,
        _ROADS,
        spec=trial.spec,
        fleet=fleet_of(trial.data.manifest),
        workers=usable_cpus(),
        on_share=on_share,
    )
    risks = trial.lineup.risks(windows)
    return choice_scores(risks, windows, trial.bootstrap), compare_risks(trial, risks, windows)


def divergences(trial: Trial) -> dict[str, Any]:
    """Count rollouts that leave physics, where nobody knows the truth.

    Random and adversarial actions on some of the windows, against `FULL_PHYSICS`.
    """
    checkpoint = trial.lineup.checkpoint
    some = one_an_episode(trial.windows, ATTACKED_WINDOWS)
    attacked = adversarial_actions(checkpoint.ensemble, trial.spec, some, trial.scale)
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
    physics = baselines_of(trial.spec)[FULL_PHYSICS](windows).states
    assert physics is not None, "physics predicts states"
    return deviation_sd(predicted, physics, trial.scale, np.ones_like(windows.valid))


def corruptions(trial: Trial) -> dict[str, Any]:
    """Return whether the model notices wrong states."""
    some = one_an_episode(trial.windows, CORRUPTED_WINDOWS)
    return corruption_scores(trial.lineup.checkpoint, some, trial.bootstrap)
