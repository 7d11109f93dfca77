"""An engine whose answer follows from its input, with a gate; a loop and a worker without time."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

import httpx
import numpy as np

from models.attribution.shares import Attribution, Group
from models.conformal import Guarantee
from models.safety import SafetyLimits
from models.spec import Feature, Spec
from service.app import WorldModelApp, create_app
from service.interface import Array, Costs, ModelInfo, Pieces, Prediction
from service.scheduling.jobs import JobClass
from service.scheduling.launches import Ran
from service.settings import Settings
from service.telemetry.metrics import Registry

T = TypeVar("T")

POISON = -9.0
"""A first state feature that makes the fake engine raise."""
DIVERGE = -8.0
"""A first state feature that makes its prediction not finite."""
PATIENCE_S = 20.0


def fake_spec() -> Spec:
    return Spec(
        name="fake",
        dt_s=0.1,
        state=tuple(Feature(n, "m", -100.0, 100.0, f"position {n}") for n in ("x", "y", "z")),
        action=(
            Feature("push", "1", -1.0, 1.0, "push along x"),
            Feature("lift", "1", 0.0, 1.0, "lift along y"),
        ),
        frame="forward-left-up",
    )


def fake_info() -> ModelInfo:
    spec = fake_spec()
    return ModelInfo(
        name="fake-model",
        version="0123456789abcdef",
        device="cpu",
        members=2,
        answer_digest="fedcba9876543210",
        spec=spec,
        limits=SafetyLimits(
            crash_threshold=0.5,
            uncertainty_limit=1.0,
            state_low=np.full(3, -50.0, np.float32),
            state_high=np.array([50.0, 50.0, np.inf], np.float32),
            horizon=16,
            feature_names=tuple(feature.name for feature in spec.state),
            dt_s=spec.dt_s,
        ),
        metrics={"auroc": 0.99},
        guarantee=Guarantee(alpha=0.01, lead_s=0.2, episodes=120, threshold=0.6),
    )


def expected(states: Array, actions: Array, members: int | None = None) -> Prediction:
    """x and y move by the action; z counts steps; |x| is the hazard in hundredths.

    Fewer members than all add their number to the rewards; one has no uncertainty.
    """
    rows, horizon, _ = actions.shape
    path = np.zeros((rows, horizon + 1, 3), np.float32)
    path[:, 0] = states
    for k in range(horizon):
        path[:, k + 1, :2] = path[:, k, :2] + actions[:, k]
        path[:, k + 1, 2] = path[:, k, 2] + 1
    return Prediction(
        states=path,
        rewards=path[:, 1:, 0] * np.float32(0.1) + np.float32(members or 0),
        dones=np.clip(np.abs(path[:, 1:, 0]) / 100, 0, 1).astype(np.float32),
        uncertainty=(np.abs(states[:, 1]) / 10 * (members != 1)).astype(np.float32),
    )


def fake_attribution(state: Array, actions: Array, members: int | None = None) -> Attribution:
    """Every number follows from the input; with members, the baseline's probability is theirs."""
    numbers, steps = state.astype(np.float64), actions.astype(np.float64)
    return Attribution(
        baseline="training_mean",
        baseline_state=0 * numbers,
        baseline_action=np.zeros(2),
        crash_probability=float(numbers.sum() + steps.sum()),
        baseline_probability=float(members or 0),
        state=numbers,
        actions=steps,
        state_gradients=2 * numbers,
        action_gradients=2 * steps,
        state_spreads=np.ones(3),
        action_spreads=np.array([1.0, 0.5]),
        state_changed=np.stack([numbers + x for x in (-1, 1)], axis=1)[..., None] * [1.0, np.nan],
        action_changed=np.zeros((2, 2)),
        groups=(Group("others", float(numbers.sum()), 0.25), Group("actions", 0.0, 0.5)),
    )


def slow_costs(row_step_s: float, most_rows: int = 128) -> Costs:
    """Return costs in proportion to rows and steps."""
    rows = tuple(range(1, most_rows + 1))
    return Costs(rows, tuple(row_step_s * r for r in rows))


def flat_costs() -> Costs:
    """Return costs as a GPU has them: few rows take as long as many, and launches are whole."""
    return Costs((8, 256, 1024, 4096), (1e-4, 1e-4, 1.5e-4, 5e-4), is_divisible=False)


class FakeEngine:
    """`service.interface.EngineLike` without a model."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.launches: list[tuple[int, int]] = []
        self.members: list[int | None] = []
        """Of each launch."""
        self.computing: int | None = None
        """Members of the last slice."""
        self.slices: list[tuple[int, int]] = []
        self.seen: list[Array] = []
        self.threads: set[str] = set()
        self.computed: list[str] = []
        """In order: "launch", or "piece" of an attribution, which has three."""
        self.on_piece: Callable[[], Any] = lambda: None
        self.canaries = 0
        self.is_broken = False
        self.is_lost = False
        self.is_quick_to_call = False
        self.watched: list[bool] = []
        self.leave_after = 0
        """Steps after which a slice is left, once, as if input had come; 0: none is."""
        self.on_leaving: Callable[[], Any] = lambda: None
        self.change: Callable[[Prediction], Prediction] = lambda prediction: prediction
        self.load_s = 0.25
        self.costs = Costs((4096,), (0.0,))
        self.usage: Mapping[str, int] | None = None
        self.busy: float | None = None
        self.count_error: Callable[[str], None] = lambda kind: None
        self._entered = threading.Semaphore(0)
        self._checked = threading.Semaphore(0)

    def describe(self) -> ModelInfo:
        return fake_info()

    def vram(self) -> Mapping[str, int] | None:
        return self.usage

    def utilization(self) -> float | None:
        return self.busy

    def report_errors_to(self, count: Callable[[str], None]) -> None:
        self.count_error = count

    def begin(
        self, states: Array, actions: Array, part_rows: int, members: int | None = None
    ) -> FakeRunning:
        rows, horizon, _ = actions.shape
        self.launches.append((rows, horizon))
        self.computed.append("launch")
        self.members.append(members)
        self.seen.append(states)
        return FakeRunning(self, states, actions, part_rows, members)

    def advance(self, running: FakeRunning, steps: int) -> None:
        self.slices.append((running.part_rows, steps))
        self.computing = running.members
        self.threads.add(threading.current_thread().name)
        self._entered.release()
        if not self.gate.wait(PATIENCE_S):
            raise TimeoutError("nobody opened the gate")
        if self.is_broken or (running.states[:, 0] == POISON).any():
            raise ArithmeticError("the fake engine was told to fail")

    def explain(self, state: Array, actions: Array, members: int | None = None) -> Pieces:
        for _ in range(3):
            self.computed.append("piece")
            self.on_piece()
            yield
        return fake_attribution(state, actions, members)

    def canary(self) -> None:
        self.canaries += 1
        self._checked.release()
        if self.is_broken:
            raise ArithmeticError("the fake engine is broken")

    async def checked(self) -> None:
        """Wait until one more canary has run."""
        if not await asyncio.to_thread(self._checked.acquire, timeout=PATIENCE_S):
            raise TimeoutError("no canary ran")

    async def entered(self) -> None:
        """Wait until one more slice has begun."""
        if not await asyncio.to_thread(self._entered.acquire, timeout=PATIENCE_S):
            raise TimeoutError("no slice began")


class FakeRunning:
    """A launch of the fake engine, which counts the steps of all its parts."""

    def __init__(
        self,
        engine: FakeEngine,
        states: Array,
        actions: Array,
        part_rows: int,
        members: int | None,
    ) -> None:
        rows, horizon, _ = actions.shape
        self.part_rows = part_rows
        self._steps = horizon * -(-rows // part_rows)
        self._engine = engine
        self.states = states
        self.actions = actions
        self.members = members
        self.taken = 0

    @property
    def is_complete(self) -> bool:
        return bool(self.taken == self._steps)

    def advance(self, steps: int, stop_when_readable: int | None = None) -> int:
        steps = min(steps, self._steps - self.taken)
        is_watched = stop_when_readable is not None and stop_when_readable >= 0
        self._engine.watched.append(is_watched)
        if self._engine.leave_after and is_watched:
            steps, self._engine.leave_after = min(steps, self._engine.leave_after), 0
            self._engine.on_leaving()
        self._engine.advance(self, steps)
        self.taken += steps
        return steps

    def result(self) -> Prediction:
        prediction = expected(self.states, self.actions, self.members)
        prediction.states[self.states[:, 0] == DIVERGE, -1] = np.nan
        return self._engine.change(prediction)


class Tally:
    """An observer that counts."""

    def __init__(self) -> None:
        self.launches: list[tuple[int, int]] = []
        self.rejections: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.row_seconds = dict.fromkeys(JobClass, 0.0)

    def launched(self, rows: int, requests: int, seconds: float) -> None:
        self.launches.append((rows, requests))

    def waited(self, job_class: JobClass, row_seconds: float) -> None:
        self.row_seconds[job_class] += row_seconds

    def rejected(self, reason: str) -> None:
        self.rejections[reason] += 1

    def engine_failed(self, kind: str) -> None:
        self.faults[kind] += 1


class _SkippingSelector(selectors.SelectSelector):
    """Instead of waiting, moves the loop's clock to when the wait would end."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("the simulation waits for something that will never come")
        if not events and timeout:
            self.loop.now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while nothing is to be done."""

    def __init__(self) -> None:
        selector = _SkippingSelector()
        self.now = 0.0
        super().__init__(selector)
        selector.loop = self

    def time(self) -> float:
        return self.now


class VirtualWorker:
    """Runs calls at once, and reports them after the virtual time they take.

    Args:
        engine: Notes its slices.
        costs: What they take in truth, whatever the engine says.
    """

    def __init__(self, engine: FakeEngine, costs: Costs) -> None:
        self._engine = engine
        self._costs = costs

    def start(self) -> None:
        pass

    def run(self, call: Callable[[], T]) -> asyncio.Future[Ran[T]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ran[T]] = loop.create_future()
        before = len(self._engine.slices)
        try:
            value, error = call(), None
        except ArithmeticError as exc:
            value, error = None, exc
        rows, steps = self._engine.slices[-1] if len(self._engine.slices) > before else (1, 1)
        seconds = steps * self._costs.of(self._engine.computing).step_s_of[rows]
        loop.call_later(seconds, self._report, future, Ran(value, error, seconds))
        return future

    @staticmethod
    def _report(future: asyncio.Future[Ran[T]], ran: Ran[T]) -> None:
        if not future.done():
            future.set_result(ran)

    async def close(self, timeout_s: float) -> None:
        pass


def settings(**given: Any) -> Settings:
    return Settings(**{"max_rows": 64, "max_horizon": 32, **given})


@contextlib.asynccontextmanager
async def serving(
    engine: FakeEngine, registry: Registry | None = None, **given: Any
) -> AsyncIterator[tuple[WorldModelApp, httpx.AsyncClient]]:
    """Run the app's lifespan, which httpx does not, and yield it with a client."""
    app = create_app(settings(**given), engine, registry or Registry())
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        yield app, client


def rows(count: int, horizon: int = 4, seed: int = 0) -> tuple[Array, Array]:
    """Return varied states [count, 3] and actions [count, horizon, 2] within the ranges."""
    rng = np.random.default_rng(seed)
    states = rng.uniform(0, 5, (count, 3)).astype(np.float32)
    return states, rng.uniform(0, 1, (count, horizon, 2)).astype(np.float32)


def same_bits(one: Prediction, other: Prediction) -> bool:
    return all(
        getattr(one, name).tobytes() == getattr(other, name).tobytes()
        for name in ("states", "rewards", "dones", "uncertainty")
    )


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop go on until something is so that nothing announces."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 (no event announces it)
            await asyncio.sleep(0)


STATE, ACTIONS = [1.0, 2.0, 3.0], [[0.5, 0.25], [0.5, 1.0]]
VERSION = "0123456789abcdef"


def bits(numbers: Any) -> bytes:
    return np.array(numbers, np.float64).astype(np.float32).tobytes()


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details"}
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    return dict(body["error"])
