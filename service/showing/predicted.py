"""What a checkpoint predicts for what is shown, judged as the service judges it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.backends.eager import Eager
from models.checkpoint import Checkpoint
from models.network.rows import ROW_TILE
from models.prediction import Array, Prediction
from models.safety import SafetyLimits, Verdict, assess
from models.safety.contacts import LEAST_CONTACT_M
from models.spec import Spec
from service.showing.given import Given


@dataclass(frozen=True)
class Predicted:
    """A prediction with its verdict.

    Attributes:
        given: What was predicted.
        spec: Meaning of the features.
        limits: What the verdict was judged by.
        version: Of the model.
        states: [H+1, S], the start included.
        rewards: [H].
        dones: [H], P(ends at that step | alive before it).
        verdict: On it.
        members: [E, H+1, S], what each member predicts by itself.
    """

    given: Given
    spec: Spec
    limits: SafetyLimits
    version: str
    states: Array
    rewards: Array
    dones: Array
    verdict: Verdict
    members: NDArray[np.float64]

    @property
    def times_s(self) -> list[float]:
        """Of the H+1 states; rounded to nanoseconds, as the service rounds them."""
        return [round(k * self.spec.dt_s, 9) for k in range(len(self.states))]


@dataclass(frozen=True)
class Crash:
    """When and with whom a crash is predicted.

    Attributes:
        step: After which.
        name: Of the road user or the edge; None if none is known.
        text: The same for a person.
    """

    step: int
    name: str | None
    text: str


def predict(given: Given, checkpoint: Checkpoint) -> Predicted:
    """Predict, in PyTorch on the CPU: to a few units in the last place what the service answers.

    Args:
        given: For it.
        checkpoint: With as many members as are to answer.
    """
    backend = Eager(checkpoint.ensemble)
    by_count = [
        _rollout(backend, given, members) for members in range(1, checkpoint.member_count + 1)
    ]
    whole = by_count[-1]
    uncertainty = whole.uncertainty
    if not np.isfinite(whole.rewards).all():  # such a model is not trusted
        uncertainty = np.full_like(uncertainty, np.nan)
    (verdict,) = assess(
        whole.states,
        whole.dones,
        uncertainty,
        checkpoint.limits,
        actions=given.actions[None],
        threshold=given.threshold,
    )
    return Predicted(
        given,
        checkpoint.spec,
        checkpoint.limits,
        checkpoint.version,
        whole.states[0],
        whole.rewards[0],
        whole.dones[0],
        verdict,
        _members(np.stack([each.states[0] for each in by_count]).astype(np.float64)),
    )


def _rollout(backend: Eager, given: Given, members: int) -> Prediction:
    horizon, (dim,) = len(given.actions), given.state.shape
    prediction = backend.blank(1, horizon, dim)
    rows = given.state[None], given.actions[None]
    backend.start(*rows, ROW_TILE, prediction, members).advance(horizon)
    return prediction


def _members(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each member predicts [E, ...], of the means of the first 1, 2, ... E."""
    counts = np.arange(1, len(means) + 1).reshape(-1, *[1] * (means.ndim - 1))
    return np.diff(counts * means, axis=0, prepend=0)


def crash_of(predicted: Predicted, gaps: Mapping[str, NDArray[np.floating]]) -> Crash | None:
    """Return the predicted crash, if there is one.

    It is the first contact of the predicted places, as a safety check counts it; or else what is
    nearest to the ego when the crash probability reaches the threshold.

    Args:
        predicted: The prediction.
        gaps: [H+1] m from the ego to each road user and edge; negative where they overlap.
    """
    times_s, names = predicted.times_s, list(gaps)
    by_name = np.array([gaps[name] for name in names]).reshape(len(names), len(times_s))
    touches = by_name[:, 1:] < -LEAST_CONTACT_M
    if touches.any():
        step = int(touches.any(0).argmax()) + 1
        name = names[int(by_name[:, step].argmin())]
        return Crash(step, name, f"the ego touches {name} after {times_s[step]:.2f} s")
    seconds = predicted.verdict.time_to_crash_s
    if seconds is None:
        return None
    step, when = times_s.index(seconds), f"the threshold is reached after {seconds:.2f} s"
    if not names:
        return Crash(step, None, when)
    name = names[int(by_name[:, step].argmin())]
    return Crash(step, name, f"{when}; {name} is nearest to the ego then")
