"""How many planners one instance of the service keeps, by candidates, rate, members and cores.

    python -m benchmarks.sizing

N planners ask `/rollout` at the same moment, once a period, for returns and crash probabilities of
K sequences of 16 steps, beside safety checks at 50 Hz. They fit if every answer is a 200, and 99 %
of the plans come within their period and 99 % of the checks within theirs, 20 ms, counted from the
moment at which they were due. The largest N that fits is searched for from above, so that it is one
that was seen. Real planners rarely ask at the same moment: what fits here fits them.

Prints Markdown, and writes it into docs/planning.md after a full run. With one core the load has
another; with two the load is on the same two.
"""

from __future__ import annotations

import datetime
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click

from benchmarks.machine import describe_machine
from benchmarks.serving import load
from benchmarks.serving.candidates import ROOT, SERVICE, Candidate, Files, our_command
from benchmarks.serving.dialects import OURS
from benchmarks.serving.processes import Cores, Server, running, two_cores, wait_until_ready
from benchmarks.serving.report import shown, table, write_between_markers
from benchmarks.serving.workloads import HORIZON, POLL_HZ, Question, make_questions, read_episodes
from service.settings import PRETRAINED

PAGE = ROOT / "docs" / "planning.md"
MARKERS = "sizing"
CANDIDATES = (16, 64, 256, 1024)
RATES_HZ = (10.0, 20.0)
MEMBERS = (1, 3, 5)
CORES = (1, 2)
BUSY = 0.8
"""Share of a core's time that the formula plans with."""

_ALONE, _ALONE_S = 15, 3.0
"""Plans that are timed one after the other; three at least, and no more after so many seconds."""
_QUESTIONS = 8
_FIRST_TRY = 1.5
"""Planners that are tried first, in times of what one plan's time promises."""
_NEXT_TRY = 0.85
_MOST_PLANNERS = 256


@dataclass(frozen=True)
class Cost:
    """What a plan takes by itself: `fixed_s + K * H / row_steps_per_s`."""

    fixed_s: float
    row_steps_per_s: float

    def planners(self, candidates: int, rate_hz: float, horizon: int = HORIZON) -> int:
        """Return how many planners keep `BUSY` of the time busy."""
        plan_s = self.fixed_s + candidates * horizon / self.row_steps_per_s
        return math.floor(BUSY / (rate_hz * plan_s))


@dataclass(frozen=True)
class Fit:
    """What planners saw, of the most that fit.

    Attributes:
        planners: Their number; 0: not even one fits.
        plan_p99_ms: Of their answers, or of the one's that did not fit; None: one that is alone
            takes longer than its period, or was refused.
        check_p99_ms: Of the safety checks beside them.
    """

    planners: int
    plan_p99_ms: float | None = None
    check_p99_ms: float | None = None

    def is_in_time(self, rate_hz: float) -> bool:
        """Whether plans and checks come within their periods."""
        if self.plan_p99_ms is None or self.check_p99_ms is None:
            return False
        return self.plan_p99_ms <= 1e3 / rate_hz and self.check_p99_ms <= 1e3 / POLL_HZ


@dataclass(frozen=True)
class Sized:
    """What was measured of one instance.

    Attributes:
        plan_s: Median time of a plan alone, by candidates.
        fits: By candidates and rate.
    """

    plan_s: Mapping[int, float]
    fits: Mapping[tuple[int, float], Fit]


def fitted(plan_s: Mapping[int, float]) -> Cost | None:
    """Return the line through the least and the most candidates; None if it does not rise."""
    least, most = min(plan_s), max(plan_s)
    rise_s = plan_s[most] - plan_s[least]
    if rise_s <= 0:
        return None
    speed = (most - least) * HORIZON / rise_s
    return Cost(max(0.0, plan_s[least] - least * HORIZON / speed), speed)


def most_that_fit(first: int, rate_hz: float, measure: Callable[[int], Fit]) -> Fit:
    """Return the first fit of numbers of planners that go down from `first`.

    Args:
        first: The number that is tried first.
        rate_hz: Plans a second of each.
        measure: Number of planners -> what they see.
    """
    planners = min(first, _MOST_PLANNERS)
    seen = Fit(0)
    while planners > 0:
        seen = measure(planners)
        if seen.is_in_time(rate_hz):
            return seen
        planners = min(planners - 1, math.floor(_NEXT_TRY * planners))
    return replace(seen, planners=0)


def first_try(plan_s: float, rate_hz: float) -> int:
    """Return more planners than fit, by the time that one plan takes alone."""
    if plan_s > 1 / rate_hz:
        return 0
    return max(1, math.ceil(_FIRST_TRY / (rate_hz * plan_s)))


@dataclass(frozen=True)
class Instance:
    """A running service, and the files of what it is asked.

    Attributes:
        server: Ready.
        plans: Bodies, by candidates.
        checks: Bodies of safety checks.
        core: Of the load; None: any.
        seconds: Length of one measurement.
    """

    server: Server
    plans: Mapping[int, Path]
    checks: Path
    core: int | None
    seconds: float

    def plan_alone_s(self, candidates: int) -> float:
        """Return the median time of plans that are asked for one after the other."""
        bodies = self.plans[candidates].read_bytes().splitlines()
        times = []
        for turn in range(_ALONE):
            started = time.perf_counter()
            self.server.ask("plan", bodies[turn % len(bodies)])
            times.append(time.perf_counter() - started)
            if turn > 1 and sum(times) > _ALONE_S:
                break
        return statistics.median(times)

    def seen(self, candidates: int, rate_hz: float, planners: int) -> Fit:
        """Return what so many planners see, and the safety checks beside them."""
        plans = self.server.url("plan"), self.plans[candidates], self.seconds, rate_hz, self.core
        checks = self.server.url("safety-check"), self.checks, self.seconds, POLL_HZ, self.core
        with ThreadPoolExecutor(2) as pool:
            beside = pool.submit(load.poll, *checks)
            asked = pool.submit(load.poll, *plans, planners)
            try:
                plan, check = asked.result(), beside.result()
            except load.RefusedError:
                return Fit(planners)
        return Fit(planners, plan.p99, check.p99)

    def sized(self, rates_hz: Sequence[float]) -> Sized:
        """Return how many planners fit, for all candidates and rates."""
        plan_s = {candidates: self.plan_alone_s(candidates) for candidates in self.plans}
        fits = {}
        for candidates, alone_s in plan_s.items():
            for rate_hz in rates_hz:
                measure = partial(self.seen, candidates, rate_hz)
                found = most_that_fit(first_try(alone_s, rate_hz), rate_hz, measure)
                fits[candidates, rate_hz] = found
                _say(f"  {candidates} candidates at {rate_hz:g} Hz: {found.planners} planners")
        return Sized(plan_s, fits)


def service_of(members: int, threads: int) -> Candidate:
    """Return our service with so many members and threads."""
    command = partial(our_command, members=str(members), threads=str(threads))
    return Candidate(SERVICE, "this service", OURS, command)


def measured(
    candidates: Sequence[int], rates_hz: Sequence[float], members: int, cores: int, seconds: float
) -> Sized:
    """Start one instance and size it."""
    placed = two_cores() if cores == 1 else Cores()
    questions = make_questions(read_episodes(), max(candidates))[:_QUESTIONS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plans = {k: _write_plans(questions, k, folder) for k in candidates}
        bodies = [OURS.body("safety-check", question) for question in questions]
        checks = load.write_bodies(bodies, folder / "checks")
        files = Files(PRETRAINED, folder, {})
        with running(service_of(members, cores), files, placed) as server:
            wait_until_ready(server, {"safety-check": bodies[0]})
            return Instance(server, plans, checks, placed.load, seconds).sized(rates_hz)


def _write_plans(questions: Sequence[Question], candidates: int, folder: Path) -> Path:
    asked = [Question(question.state, question.actions[:candidates]) for question in questions]
    bodies = [OURS.body("plan", question) for question in asked]
    return load.write_bodies(bodies, folder / f"plans-{candidates}")


def costs_table(sizes: Mapping[tuple[int, int], Sized]) -> str:
    """Return what plans take alone.

    Args:
        sizes: By cores and members.
    """
    candidates = list(next(iter(sizes.values())).plan_s)
    rows = []
    for (cores, members), sized in sizes.items():
        cost = fitted(sized.plan_s)
        numbers = ("-", "-")
        if cost is not None:
            numbers = f"{1e3 * cost.fixed_s:.1f}", f"{cost.row_steps_per_s:,.0f}"
        times = [shown(1e3 * sized.plan_s[k]) for k in candidates]
        rows.append([str(cores), str(members), *times, *numbers])
    columns = ["cores", "members", *(f"K = {k}, ms" for k in candidates), "fixed, ms"]
    return table([*columns, "rows x steps per s"], rows)


def planners_table(sizes: Mapping[int, Sized]) -> str:
    """Return how many planners fit on an instance.

    Args:
        sizes: By members.
    """
    cells = list(next(iter(sizes.values())).fits)
    rows = [
        [f"{k} at {rate_hz:g} Hz", *(_cell(sized, k, rate_hz) for sized in sizes.values())]
        for k, rate_hz in cells
    ]
    names = [f"{members} member{'s' * (members > 1)}" for members in sizes]
    return table(["candidates", *names], rows)


def _cell(sized: Sized, candidates: int, rate_hz: float) -> str:
    fit, cost = sized.fits[candidates, rate_hz], fitted(sized.plan_s)
    expected = "-" if cost is None else cost.planners(candidates, rate_hz)
    text = f"**{fit.planners}** / {expected}"
    if fit.plan_p99_ms is None or fit.check_p99_ms is None:
        return text
    who = "" if fit.planners else "one: "
    return f"{text} ({who}{shown(fit.plan_p99_ms)}; {shown(fit.check_p99_ms)})"


def report(sizes: Mapping[tuple[int, int], Sized], seconds: float, busy: float) -> str:
    """Return all tables.

    Args:
        sizes: By cores and members.
        seconds: Length of one measurement.
        busy: Load average of the machine before.
    """
    parts = [
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}. {describe_machine()}. Each number of "
        f"planners was tried for {seconds:g} s.\nLoad average of the machine before the start: "
        f"{busy:.1f}{_beside(busy)}.",
        f"A plan of {HORIZON} steps alone, nobody else asking, and the line through the least and "
        "the most candidates:",
        costs_table(sizes),
    ]
    for cores in dict.fromkeys(cores for cores, _ in sizes):
        own = {members: sized for (n, members), sized in sizes.items() if n == cores}
        load_is = "the load on another" if cores == 1 else "the load on the same two"
        parts.append(
            f"**Planners that fit on {cores} core{'s' * (cores > 1)}**, {load_is}, and how many "
            "the formula promises; in brackets p99 of their plans, and of safety checks at 50 Hz "
            "beside them, ms. Where none fits, they are those of one; without them a plan alone "
            "takes longer than its period:"
        )
        parts.append(planners_table(own))
    return "\n\n".join(parts)


def _beside(busy: float) -> str:
    if busy < 0.5:
        return ""
    return ", so other programs ran beside it, and a quiet machine keeps more"


def _all(
    candidates: Sequence[int],
    rates_hz: Sequence[float],
    members: Sequence[int],
    cores: Sequence[int],
    seconds: float,
) -> Iterator[tuple[tuple[int, int], Sized]]:
    for n in cores:
        for m in members:
            _say(f"{n} core{'s' * (n > 1)}, {m} member{'s' * (m > 1)}")
            yield (n, m), measured(candidates, rates_hz, m, n, seconds)


@click.command()
@click.option("--candidates", multiple=True, type=click.IntRange(1, 4096), default=CANDIDATES)
@click.option("--rate", "rates_hz", multiple=True, type=click.FloatRange(0.1), default=RATES_HZ)
@click.option("--members", multiple=True, type=click.IntRange(1, 5), default=MEMBERS)
@click.option("--cores", multiple=True, type=click.IntRange(1, 2), default=CORES)
@click.option(
    "--seconds", default=10.0, show_default=True, type=click.FloatRange(min=1), help="A try."
)
@click.option("--no-write", is_flag=True, help="Leave docs/planning.md alone.")
def main(
    candidates: tuple[int, ...],
    rates_hz: tuple[float, ...],
    members: tuple[int, ...],
    cores: tuple[int, ...],
    seconds: float,
    no_write: bool,
) -> None:
    """Measure how many planners fit, and print tables; each of the first four may be repeated."""
    busy = os.getloadavg()[0]
    try:
        two_cores()
    except OSError as exc:
        raise click.ClickException(str(exc)) from exc
    wanted = (sorted(set(candidates)), rates_hz, members, cores)
    text = report(dict(_all(*wanted, seconds)), seconds, busy)
    print(f"\n{text}")
    is_whole = (candidates, rates_hz, members, cores) == (CANDIDATES, RATES_HZ, MEMBERS, CORES)
    if is_whole and not no_write:
        write_between_markers(PAGE, text, MARKERS)
        print(f"\nWritten into {PAGE.relative_to(ROOT)}")


def _say(text: str) -> None:
    print(f"==> {text}", flush=True)


if __name__ == "__main__":
    main()
