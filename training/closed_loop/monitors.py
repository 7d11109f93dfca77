"""Monitors of a driver: each step they let its action pass, or take another one instead.

A monitor asks a judge how risky action sequences are: the service, or physics.
Both take N cars at once, and states of any spec that physics can read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.safety import SAFE, UNKNOWN, UNSAFE
from models.spec import Spec
from training.closed_loop.manoeuvres import HIGHWAY, MANOEUVRES, hold, manoeuvres
from training.evaluation.baselines import margin, physics_rollout

Floats = NDArray[np.floating[Any]]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Opinion:
    """What a judge returns for K sequences of each of N cars.

    Attributes:
        verdict: [N, K], "safe", "unsafe" or "unknown".
        risk: [N, K], higher is riskier; infinite if not known.
        round_trip_s: [N], how long the answer took; empty if no request was sent.
    """

    verdict: NDArray[np.str_]
    risk: Floats
    round_trip_s: Floats

    @property
    def is_safe(self) -> Booleans:
        """[N, K]."""
        return np.asarray(self.verdict == SAFE)

    @property
    def is_unknown(self) -> Booleans:
        """[N, K]."""
        return np.asarray(self.verdict == UNKNOWN)

    def safest(self, first: int = 0) -> NDArray[np.int64]:
        """Return the sequence [N] with the lowest risk, from the first-th on.

        As `models.safety.safest`: safe before unknown before unsafe, then by risk.
        """
        order = np.select([self.is_safe, self.is_unknown], [0, 1], 2)
        return first + np.lexsort((self.risk[:, first:], order[:, first:]), axis=1)[:, 0]


class Judge(Protocol):
    """Judges how risky sequences are."""

    async def judge(self, states: Floats, sequences: Floats, threshold: float | None) -> Opinion:
        """Judge K sequences of each of N cars.

        Args:
            states: [N, S].
            sequences: [N, K, H, 3].
            threshold: Risk from which a sequence is unsafe; the judge's own if None.
        """


class JudgeSource(Protocol):
    """Where a process gets a judge from; it can be sent to another process."""

    def opened(self) -> AbstractAsyncContextManager[Judge]:
        """Return the judge, for as long as the block runs."""


@dataclass(frozen=True)
class PhysicsJudge:
    """A physics baseline in the model's place, with the same states; see `baselines`.

    It is its own `JudgeSource`.

    Attributes:
        threshold: Risk from which a sequence is unsafe: minus the smallest margin on the way, m.
        spec: Of the states.
        turning: Whether neighbours keep acceleration and turn rate (`baselines.FULL_PHYSICS`), or
            go straight on at their speed.
    """

    threshold: float
    spec: Spec = HIGHWAY
    turning: bool = True

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Judge]:
        """See `JudgeSource`."""
        yield self

    async def judge(self, states: Floats, sequences: Floats, threshold: float | None) -> Opinion:
        """Judge K sequences of each of N cars; it always knows."""
        threshold = self.threshold if threshold is None else threshold
        cars, count, horizon, _ = sequences.shape
        start = np.repeat(states, count, axis=0)
        predicted = physics_rollout(
            start, sequences.reshape(cars * count, horizon, -1), self.spec, turning=self.turning
        )
        risk = -margin(predicted[:, 1:], self.spec).min(1).reshape(cars, count)
        return Opinion(np.where(risk < threshold, SAFE, UNSAFE), risk, np.empty(0))


@dataclass(frozen=True)
class Choice:
    """What is done with N cars.

    Attributes:
        actions: [N, 3].
        is_overridden: [N], whether it is not what the driver wanted.
        opinion: On which it was decided; None if no judge was asked.
    """

    actions: Floats
    is_overridden: Booleans
    opinion: Opinion | None


class Monitor(Protocol):
    """Decides what is done."""

    async def choose(self, states: Floats, wanted: Floats) -> Choice:
        """Decide for N cars.

        Args:
            states: [N, S].
            wanted: [N, 3], the drivers' actions.
        """


class NoMonitor:
    """Lets everything pass."""

    async def choose(self, states: Floats, wanted: Floats) -> Choice:
        """Return what the drivers want."""
        del states
        return Choice(wanted, np.zeros(len(wanted), bool), None)


@dataclass(frozen=True)
class BrakeMonitor:
    """Full brake in the lane, unless holding the driver's action for the horizon is safe.

    Attributes:
        judge: Whom it asks.
        horizon: Steps, H.
        spec: Of the states.
    """

    judge: Judge
    horizon: int
    spec: Spec = HIGHWAY

    async def choose(self, states: Floats, wanted: Floats) -> Choice:
        """Ask about one sequence per car."""
        opinion = await self.judge.judge(states, hold(wanted, self.horizon)[:, None], None)
        is_overridden = ~opinion.is_safe[:, 0]
        brake = manoeuvres(states, 1, spec=self.spec)[:, 0, 0]
        actions = np.where(is_overridden[:, None], brake, wanted)
        return Choice(actions, is_overridden, opinion)


@dataclass(frozen=True)
class FallbackMonitor:
    """The safest manoeuvre, unless holding the driver's action for the horizon is safe.

    The driver's action is a candidate too: it passes where nothing is better.

    Attributes:
        judge: Whom it asks.
        horizon: Steps, H.
        spec: Of the states.
    """

    judge: Judge
    horizon: int
    spec: Spec = HIGHWAY

    async def choose(self, states: Floats, wanted: Floats) -> Choice:
        """Ask about 1 + `len(MANOEUVRES)` sequences per car."""
        held = hold(wanted, self.horizon)[:, None]
        ways_out = manoeuvres(states, self.horizon, spec=self.spec)
        sequences = np.concatenate([held, ways_out], axis=1)
        opinion = await self.judge.judge(states, sequences, None)
        best = np.where(opinion.is_safe[:, 0], 0, opinion.safest())
        return Choice(sequences[np.arange(len(best)), best, 0], best > 0, opinion)


@dataclass(frozen=True)
class Shield:
    """Lets the driver's action pass while some manoeuvre after it is safe; else the safest one now.

    It keeps a way out rather than forbid what would be unsafe if it went on, so it rarely needs to
    act (a predictive safety filter: Wabersich and Zeilinger 2021).

    Attributes:
        judge: Whom it asks.
        horizon: Steps, H.
        threshold: Risk from which a sequence is unsafe.
        spec: Of the states.
    """

    judge: Judge
    horizon: int
    threshold: float
    spec: Spec = HIGHWAY

    async def choose(self, states: Floats, wanted: Floats) -> Choice:
        """Ask about 2 `len(MANOEUVRES)` sequences per car."""
        count = len(MANOEUVRES)
        after, now = (
            manoeuvres(states, self.horizon, first, self.spec) for first in (wanted, None)
        )
        sequences = np.concatenate([after, now], axis=1)
        opinion = await self.judge.judge(states, sequences, self.threshold)
        is_overridden = np.asarray(~opinion.is_safe[:, :count].any(1))
        best = sequences[np.arange(len(states)), opinion.safest(count), 0]
        return Choice(np.where(is_overridden[:, None], best, wanted), is_overridden, opinion)
