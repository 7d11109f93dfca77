"""Watch a planner through the service: a safety monitor, asked 20 times a second.

    async with AsyncClient("http://127.0.0.1:8000") as client:
        spec, horizon = await served(client)
        await watch(client, read, act, horizon=horizon, spec=spec)

`safe` means that no crash is expected within the horizon of 0.8 s. It does not mean that a crash
can still be avoided: at 22 m/s, 18 m behind a car that goes 6 m/s (both of 4.8 m), going on and
braking fully are both `safe`, and neither ends well. So the plan passes only if it is `safe` *and*
full braking still stops the car in time. Everything else counts as unsafe: `unsafe`, `unknown`, an
answer that cannot be read, and no answer.

One `/safety-check` a period judges the plan and the fallbacks. Decisions are pure functions of the
state and the answer (`decide`); only `ask` and `watch` wait. If this program ends, nobody watches:
what executes its actions must brake by itself when none came for some periods.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.spec import HIGHWAY, has_sizes, known_spec
from models.spec import Spec
from training.closed_loop.manoeuvres import MANOEUVRES, hold, manoeuvres
from training.simulation.bicycle import DT_S, FULL_BRAKE_MPS2, FULL_THROTTLE_MPS2
from training.simulation.states import Decoded, encoder_of
from world_model_client import AsyncClient, WorldModelError

PERIOD_S = 0.05
"""Between two decisions: a step of the model."""

BUDGET_S = 0.04
"""Longest wait for an answer. The rest of the period is for deciding and acting."""

REACTION_S = 0.2
"""From a state to the brakes' full effect, if the next period finds what this one let pass."""

FRONT_BRAKING_MPS2 = 3.0
"""The car ahead may brake this hard at any time, or as hard as it brakes now if that is harder."""

ONCOMING_BRAKING_MPS2 = 3.0
"""An oncoming car brakes this hard when it sees us."""

MARGIN_M = 1.0
"""Gap to the car ahead that must be left when both stand or go at the same speed."""

ROOM_M = 0.4
"""Who leaves less room than this beside the ego is in the way."""

LOOK_AHEAD_S = 1.0
"""So are those that get there within this time as they go now."""

CREEP_M = 0.05
"""A car that stops within this distance stands."""

BRAKE = "full brake, keep lane"
"""The manoeuvre of least risk if nothing is known."""

FALLBACKS = (
    BRAKE,
    "half brake, keep lane",
    "full brake, left",
    "full brake, right",
    "coast, left",
    "coast, right",
)
"""Of `MANOEUVRES`, what is asked about beside the plan."""

PLAN = "plan"
CANDIDATES = (PLAN, *FALLBACKS)
"""Names of what is asked about, in order."""

_BEND_REACH_M = 40.0
_MOMENTS = np.linspace(0.0, 1.0, 50)
_COLUMNS = [MANOEUVRES.index(name) for name in FALLBACKS]

Floats = NDArray[np.floating[Any]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """What the service answered about one candidate.

    Attributes:
        verdict: "safe", "unsafe" or "unknown".
        risk: Crash probability; infinite if there is no number.
        trajectory: [H+1, S] predicted states, the present one first.
    """

    verdict: str
    risk: float
    trajectory: Floats


@dataclass(frozen=True)
class Decision:
    """What to do now.

    Attributes:
        actions: [H, 3], the first one now; the others only if no decision follows.
        name: One of `CANDIDATES`.
        is_alarm: Whether it is not the plan.
        reason: Why not, for a person; empty if it is the plan.
    """

    actions: Floats
    name: str
    is_alarm: bool
    reason: str


def candidates(state: Floats, plan: Floats, spec: Spec = HIGHWAY) -> Floats:
    """Return what to ask about: the plan, then the fallbacks for as long, [K, H, 3].

    Args:
        state: [S].
        plan: [H, 3].
        spec: Of the state, as in all that follows: what `served` returns.
    """
    ways_out = manoeuvres(state[None], len(plan), spec=spec)[0, _COLUMNS]
    return np.concatenate([plan[None], ways_out])


def judgements_of(answer: Any, horizon: int, spec: Spec = HIGHWAY) -> list[Judgement]:
    """Return what an answer says about each of `CANDIDATES`.

    What is not the right number, shape or word is never taken for `safe`: a proxy or another
    version may have answered.

    Raises:
        ValueError: It is no answer to what was asked.
    """
    verdicts = answer.get("candidates") if isinstance(answer, dict) else None
    if not isinstance(verdicts, list) or len(verdicts) != len(CANDIDATES):
        raise ValueError(f"the answer has no list of {len(CANDIDATES)} candidates")
    return [_judgement(verdict, (horizon + 1, spec.state_dim)) for verdict in verdicts]


def _judgement(verdict: Any, shape: tuple[int, int]) -> Judgement:
    if not isinstance(verdict, dict):
        raise ValueError(f"a candidate of the answer is a {type(verdict).__name__}, not an object")
    risk: Any = verdict.get("crash_probability")
    states = np.array(verdict.get("trajectory"), np.float64)  # null becomes NaN
    if states.shape != shape:
        raise ValueError(f"a trajectory of the answer has the shape {states.shape}")
    is_number = isinstance(risk, float | int) and not isinstance(risk, bool)
    if not is_number or not 0 <= risk <= 1 or not np.isfinite(states).all():
        return Judgement("unknown", math.inf, states)
    return Judgement(str(verdict.get("verdict")), float(risk), states)


def reserve_m(states: Floats, spec: Spec = HIGHWAY) -> Floats:
    """Return the gap to those ahead that is left if the ego brakes fully at once, m [...].

    The smallest one on the way until all stand; negative if that ends in a crash; infinite if
    nobody is in the ego's corridor; minus infinite for states that are not finite. Who is beside
    and behind is left to the model.

    Args:
        states: [..., S].
        spec: Of the states.
    """
    states = np.asarray(states, np.float64)
    is_known = np.asarray(np.isfinite(states).all(-1))
    seen = encoder_of(spec).decode(np.where(is_known[..., None], states, 0.0))
    speed = seen.ego[..., 0, None, None]
    presence, dx, _, _, other, acceleration, _ = np.moveaxis(seen.slots, -1, 0)
    across, turned = _in_lane(seen)
    reach, corridor = _touching(seen, turned, is_turned=has_sizes(spec))
    later = across + LOOK_AHEAD_S * other * np.sin(turned)
    aside = np.where(across * later < 0, 0.0, np.minimum(np.abs(across), np.abs(later)))
    is_ahead = (presence > 0.5) & (dx > reach) & (aside < corridor + ROOM_M)
    along = (other * np.cos(turned))[..., None]
    braking = np.maximum(FRONT_BRAKING_MPS2, -acceleration)[..., None]
    braking = np.where(along < 0, ONCOMING_BRAKING_MPS2, braking)
    until_s = np.maximum(speed / FULL_BRAKE_MPS2, np.where(along < 0, -along / braking, 0.0))
    time_s = until_s * _MOMENTS  # [..., slots, 50]
    left = np.sign(along) * _braked_m(np.abs(along), braking, time_s)
    left = left - _braked_m(speed, FULL_BRAKE_MPS2, time_s)
    gaps = np.where(is_ahead, dx - reach + left.min(-1), np.inf)
    return np.where(is_known, gaps.min(-1), -np.inf)


def _touching(seen: Decoded, turned: Floats, *, is_turned: bool) -> tuple[Floats, Floats]:
    """Return how far ahead, and how far aside, centres are where rectangles touch, [..., slots].

    Args:
        seen: What states say.
        turned: [..., slots] rad, headings in the lane straightened.
        is_turned: Whether to turn rectangles; cars of one size count as if along the lane.
    """
    length, width = np.moveaxis(seen.sizes, -1, 0)
    if is_turned:
        cos, sin = np.abs(np.cos(turned)), np.abs(np.sin(turned))
        length, width = cos * length + sin * width, sin * length + cos * width
    own = seen.ego_size[..., None, :]
    return (own[..., 0] + length) / 2, (own[..., 1] + width) / 2


def _braked_m(speed: Floats, braking: Floats | float, time_s: Floats) -> Floats:
    """Return how far a car gets within a time, from a speed, braking until it stands."""
    time_s = np.minimum(time_s, speed / braking)
    return np.asarray(speed * time_s - braking * time_s**2 / 2)


def _in_lane(seen: Decoded) -> tuple[Floats, Floats]:
    """Return the neighbours in the lane straightened: m to the right of the ego, heading in rad.

    Both [..., slots].
    """
    _, _, sin_error, _, _, curvature = np.moveaxis(seen.ego[..., None, :], -1, 0)
    _, dx, dy, heading, _, _, _ = np.moveaxis(seen.slots, -1, 0)
    error = np.arcsin(np.clip(sin_error, -1, 1))
    reach = np.clip(dx, -_BEND_REACH_M, _BEND_REACH_M)
    across = dx * np.sin(error) + dy * np.cos(error) - curvature * reach**2 / 2
    return across, heading + error - curvature * reach


def is_avoidable(trajectory: Floats, after_s: float, spec: Spec = HIGHWAY) -> bool:
    """Tell whether full braking stops the car in time, along or at the end of a sequence.

    Either after a time, or from where the sequence ends, which may be another lane.

    Args:
        trajectory: [H+1, S].
        after_s: Before which nobody will brake.
        spec: Of the states.
    """
    first = min(math.ceil(after_s / DT_S), len(trajectory) - 1)
    return bool((reserve_m(trajectory[[first, -1]], spec) >= MARGIN_M).any())


def keeps_standing(state: Floats, plan: Floats) -> bool:
    """Tell whether the plan keeps the car where it is, to `CREEP_M`: it hits nobody then.

    A car that moves, however slowly, must brake: without pedals it rolls on.
    """
    if plan.ndim != 2 or plan.shape[1] != 3 or not len(plan):
        return False
    wanted = FULL_THROTTLE_MPS2 * plan[:, 1] - FULL_BRAKE_MPS2 * plan[:, 2]
    braking = -float(wanted.max())
    # v^2 = 2 a s; of a state or plan that is not finite nothing is true.
    speed = state[0]  # of every spec that `served` returns the first feature
    return bool(braking >= 0 and speed >= 0 and speed**2 <= 2 * braking * CREEP_M)


def brake_in_lane(state: Floats, horizon: int, spec: Spec = HIGHWAY) -> Floats:
    """Return the sequence [H, 3] that brakes fully and keeps the lane; at least one step.

    Of a state that is not finite it keeps the wheels straight: the brakes need no state.
    """
    horizon = max(1, horizon)
    if not np.isfinite(state).all():
        return np.asarray(hold(np.array([[0.0, 0.0, 1.0]]), horizon)[0])
    return np.asarray(manoeuvres(state[None], horizon, spec=spec)[0, MANOEUVRES.index(BRAKE)])


def decide(
    state: Floats,
    plan: Floats,
    judgements: Sequence[Judgement] | None,
    spec: Spec = HIGHWAY,
) -> Decision:
    """Return what to do: the plan, if it is known to be safe and to stay so, else a fallback.

    Args:
        state: [S], the present one.
        plan: [H, 3].
        judgements: Of `CANDIDATES`; None if there was no answer.
        spec: Of the state.
    """
    if keeps_standing(state, plan):
        return Decision(plan, PLAN, False, "")
    if judgements is None:
        return Decision(brake_in_lane(state, len(plan), spec), BRAKE, True, "no answer")
    wanted = judgements[0]
    if wanted.verdict == "safe" and is_avoidable(wanted.trajectory, REACTION_S, spec):
        return Decision(plan, PLAN, False, "")
    is_safe = wanted.verdict == "safe"
    reason = "the plan leaves no room to brake" if is_safe else f"the plan is {wanted.verdict}"
    index = best_fallback(judgements, spec)
    return Decision(candidates(state, plan, spec)[index], CANDIDATES[index], True, reason)


def best_fallback(judgements: Sequence[Judgement], spec: Spec = HIGHWAY) -> int:
    """Return the fallback to take, as an index of `CANDIDATES`.

    Safe ones that leave room to brake come first, by risk; then safe ones that leave none, by how
    much is missing; then unknown ones in their order, full brake first; then the least risk.
    """

    def order(index: int) -> tuple[float, ...]:
        judged = judgements[index]
        if judged.verdict == "safe" and is_avoidable(judged.trajectory, 0.0, spec):
            return 0, judged.risk
        if judged.verdict == "safe":
            return 1, -float(reserve_m(judged.trajectory[[0, -1]], spec).max()), judged.risk
        if judged.verdict == "unsafe":
            return 3, judged.risk
        return 2, index

    return min(range(1, len(judgements)), key=order)


async def served(client: AsyncClient) -> tuple[Spec, int]:
    """Return the spec of the served model, and how many steps it may be asked about.

    Raises:
        ValueError: Its state is not one that this monitor reads, or it was never calibrated.
        ServiceError: The service refused or failed.
        UnreachableError: No answer came.
    """
    model = await client.model()
    spec = known_spec([feature["name"] for feature in model["features"]["state"]])
    horizon = model["thresholds"]["evaluated_horizon"]
    if not horizon:
        raise ValueError("the model was never calibrated: every verdict would be unknown")
    return spec, int(horizon)


async def ask(
    client: AsyncClient,
    state: Floats,
    plan: Floats,
    budget_s: float = BUDGET_S,
    spec: Spec = HIGHWAY,
) -> list[Judgement] | None:
    """Return what the service says about the plan and the fallbacks; None if it says nothing.

    It returns within the budget: the client itself waits half a second longer than its `timeout_s`,
    for the service's own answer that it is late.

    Args:
        client: Of the service.
        state: [S].
        plan: [H, 3].
        budget_s: Longest wait.
        spec: Of the state.
    """
    try:
        async with asyncio.timeout(budget_s):
            answer = await client.safety_check(
                state, candidates(state, plan, spec), include=["trajectory"], timeout_s=budget_s
            )
        return judgements_of(answer, len(plan), spec)
    except (WorldModelError, TimeoutError, ValueError) as exc:
        log.warning("no answer: %s", str(exc) or "too late")
    except Exception:  # a fault of this program must not leave the car unwatched
        log.exception("the check failed")
    return None


async def watch(
    client: AsyncClient,
    read: Callable[[], tuple[Floats, Floats]],
    act: Callable[[Decision], None],
    *,
    horizon: int,
    spec: Spec = HIGHWAY,
    budget_s: float = BUDGET_S,
    ticks: int | None = None,
    clock: Callable[[], float] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Decide once a period, at moments counted from the start, so that delays do not add up.

    Where a decision took longer than its period, the moments that passed are left out.

    Args:
        client: Of the service.
        read: Returns the present state [S] and the planner's plan [H, 3], at once. Where there is
            none, or only an old one, let it be NaN: that is no answer, too. `StateBuilder.update`
            makes the state of poses, sizes and lines; where somebody who matters has no slot in
            it (`is_whole`), brake.
        act: Takes each decision.
        horizon: Steps of a plan that are looked at, what `served` returns.
        spec: Of the state, what `served` returns.
        budget_s: Longest wait for an answer.
        ticks: How many decisions; None: without end.
        clock: Seconds; the event loop's by default.
        sleep: Waits for so many seconds.
    """
    clock = clock or asyncio.get_running_loop().time
    due_s = clock()
    while ticks is None or ticks > 0:
        state, plan = read()
        plan = plan[:horizon]
        act(decide(state, plan, await ask(client, state, plan, budget_s, spec), spec))
        due_s += PERIOD_S * max(1, math.ceil((clock() - due_s) / PERIOD_S))
        await sleep(due_s - clock())
        ticks = ticks and ticks - 1
