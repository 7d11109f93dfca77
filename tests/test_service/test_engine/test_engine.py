from __future__ import annotations

import ctypes
import itertools
import math
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.backends.backend import NotCompiledError
from models.backends.eager import Eager
from models.checkpoint import Architecture, Calibration, Checkpoint
from models.network.ensemble import EnsembleStep, WorldModelEnsemble
from models.network.rows import ROW_TILE
from models.spec import anonymous_spec
from models.survival import crash_probability
from service.engine import Engine
from service.engine.launch_rows import launch_row_counts
from service.engine.parts import DeviceFullError
from service.engine.warmup import _best_group
from service.errors import StartupError
from service.interface import Array, EngineLike, Prediction
from tests.fakes.engine import same_bits

STATE_DIM, ACTION_DIM = 4, 2


@pytest.fixture(autouse=True)
def _any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep all launch shapes, however long a step takes here."""
    monkeypatch.setattr("service.engine.engine._LONGEST_STEP_S", math.inf)


@cache
def checkpoint(members: int = 2) -> Checkpoint:
    """Return one and the same: initial weights depend on the number of threads."""
    torch.manual_seed(0)
    spec = anonymous_spec(STATE_DIM, ACTION_DIM)
    architecture = Architecture(hidden_dims=(16, 32))
    ensemble = WorldModelEnsemble.from_members([architecture.build(spec) for _ in range(members)])
    bounds = (-1.0,) * STATE_DIM, (1.0,) * STATE_DIM
    return Checkpoint(
        ensemble=ensemble.eval().requires_grad_(False),
        spec=spec,
        architecture=architecture,
        calibration=Calibration(0.2, 0.9, *bounds, 16, {"allow_unguaranteed": True}),
        name="small",
        version="v1",
        metrics={"auroc": 0.5},
    )


@pytest.fixture(scope="module", params=["native", "native, 3 threads", "eager"])
def engine(request: pytest.FixtureRequest, library: Path) -> Iterator[Engine]:
    before = torch.get_num_threads()
    engine = Engine(
        checkpoint(),
        device="cpu",
        threads=3 if "threads" in request.param else 1,
        library=(lambda: library) if "native" in request.param else None,
    )
    engine.start()
    assert engine.describe().device == ("cpu" if "native" in request.param else "cpu (eager)")
    yield engine
    engine.close()
    torch.set_num_threads(before)


def inputs(rows: int, horizon: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(rows, STATE_DIM)).astype(np.float32)
    return states, rng.uniform(-1, 1, (rows, horizon, ACTION_DIM)).astype(np.float32)


def openmp_threads() -> int:
    """Return what OpenMP would take for a call on this thread; of torch, asking would set it."""
    maps = Path("/proc/self/maps")
    libraries = maps.read_text().split() if maps.exists() else []
    path = next((word for word in libraries if "torch" in word and "libgomp" in word), None)
    if path is None:
        pytest.skip("torch computes without libgomp here")
    return int(ctypes.CDLL(path).omp_get_max_threads())


@pytest.mark.parametrize("call", ["canary", "explain"])
def test_any_thread_that_calls_computes_with_as_many_threads_as_were_asked_for(
    engine: Engine, call: str
) -> None:
    states, actions = inputs(1, 2)
    seen = []

    def compute() -> None:
        engine.canary() if call == "canary" else next(engine.explain(states[0], actions[0]))
        seen.append(openmp_threads())

    openmp_threads()  # skips, if need be
    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()

    assert seen == [engine._threads]


def row_bits(prediction: Prediction, row: int) -> list[bytes]:
    names = ("states", "rewards", "dones", "uncertainty")
    return [np.ascontiguousarray(getattr(prediction, name)[row]).tobytes() for name in names]


def test_the_answer_is_the_models(engine: Engine) -> None:
    states, actions = inputs(11, 6)

    seen = engine.rollout(states, actions)

    truth = checkpoint().ensemble.rollout(torch.from_numpy(states), torch.from_numpy(actions))
    for name in ("states", "rewards", "dones", "uncertainty"):
        assert getattr(seen, name).dtype == np.float32
        np.testing.assert_allclose(
            getattr(seen, name), getattr(truth, name).numpy(), rtol=1e-5, atol=1e-6, err_msg=name
        )


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.integers(1, 6),
    st.integers(0, 10**6),
)
def test_a_row_has_the_same_bits_alone_and_in_any_launch(
    engine: Engine, counts: list[int], horizon: int, seed: int
) -> None:
    states, actions = inputs(sum(counts), horizon, seed)
    together = engine.rollout(states, actions)
    start = 0
    for count in counts:
        alone = engine.rollout(states[start : start + 1], actions[start : start + 1])
        part = engine.rollout(states[start : start + count], actions[start : start + count])
        assert row_bits(alone, 0) == row_bits(together, start)
        assert row_bits(part, count - 1) == row_bits(together, start + count - 1)
        start += count


@pytest.mark.parametrize("part_rows", [7, 20])
def test_a_launch_can_be_left_and_gone_on_with(engine: Engine, part_rows: int) -> None:
    states, actions = inputs(20, 7)
    other = inputs(9, 3, seed=1)
    whole, alone = engine.rollout(states, actions), engine.rollout(*other)

    begun = engine.begin(states, actions, part_rows)
    assert [begun.advance(2), begun.advance(3), begun.is_complete] == [2, 3, False]
    between = engine.rollout(*other)
    left = 7 * math.ceil(20 / part_rows) - 5
    assert (begun.advance(99), begun.is_complete) == (left, True)

    assert [row_bits(begun.result(), k) for k in range(20)] == [
        row_bits(whole, k) for k in range(20)
    ]
    assert row_bits(between, 8) == row_bits(alone, 8)


def test_more_rows_than_the_biggest_shape_are_several_launches(engine: Engine) -> None:
    states, actions = inputs(engine.costs.launch_rows[-1] + 5, 2)

    seen = engine.rollout(states, actions)

    assert row_bits(seen, len(states) - 1) == row_bits(engine.rollout(states[-1:], actions[-1:]), 0)


def test_costs_are_measured_for_every_shape(engine: Engine) -> None:
    costs = engine.costs

    assert set(costs.launch_rows) <= set(launch_row_counts("cpu", is_padded=False))
    assert len(costs.step_s) == len(costs.launch_rows)
    assert all(seconds > 0 for seconds in costs.step_s)
    assert costs.is_divisible
    assert engine.is_quick_to_call


def test_without_compiled_code_steps_are_eager_and_it_is_said() -> None:
    def refuse() -> Path:
        raise NotCompiledError("no compiler")

    small = Engine(checkpoint(), device="cpu", threads=1, library=refuse)
    with structlog.testing.capture_logs() as lines:
        small.start()

    assert (lines[0]["event"], lines[0]["reason"]) == (
        "no machine code: steps are eager, many times slower",
        "no compiler",
    )
    assert small.describe().device == "cpu (eager)"


def test_a_prefix_of_a_rollout_is_the_shorter_rollout(engine: Engine) -> None:
    states, actions = inputs(3, 8)

    long, short = engine.rollout(states, actions), engine.rollout(states, actions[:, :5])

    assert np.array_equal(long.states[:, :6], short.states)
    assert np.array_equal(long.dones[:, :5], short.dones)


def test_what_the_engine_is_given_stays_as_it_was(engine: Engine) -> None:
    states, actions = inputs(3, 2)
    before = states.copy(), actions.copy()

    engine.rollout(states, np.broadcast_to(actions[:1], actions.shape))

    assert np.array_equal(states, before[0])
    assert np.array_equal(actions, before[1])


def test_the_model_is_described(engine: Engine) -> None:
    info = engine.describe()

    assert (info.name, info.version, info.members) == ("small", "v1", 2)
    assert (info.spec.state_dim, info.limits.crash_threshold) == (STATE_DIM, 0.2)
    assert info.metrics == {"auroc": 0.5}
    assert engine.load_s > 0
    assert (engine.vram(), engine.utilization()) == (None, None)
    as_protocol: EngineLike = engine
    as_protocol.canary()


def digest_of(library: Path | None, threads: int, members: int = 2) -> tuple[str, bytes]:
    """Return an engine's digest, and the bytes of an answer."""
    ensemble = WorldModelEnsemble.from_members(list(checkpoint().ensemble.members)[:members])
    served = replace(checkpoint(), ensemble=ensemble)
    engine = Engine(served, threads=threads, library=(lambda: library) if library else None)
    before = torch.get_num_threads()
    engine.start()
    answer = engine.rollout(*inputs(40, 5))
    engine.close()
    torch.set_num_threads(before)
    return engine.describe().answer_digest, answer.states.tobytes() + answer.dones.tobytes()


def test_engines_of_the_same_digest_give_the_same_bits(library: Path) -> None:
    found = [
        digest_of(library, threads=1),
        digest_of(library, threads=2),
        digest_of(None, threads=1),
        digest_of(library, threads=1, members=1),
    ]

    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest, _ in found)
    for one, other in itertools.combinations(found, 2):
        assert (one[0] == other[0]) is (one[1] == other[1])
    assert found[0][0] == found[1][0] != found[3][0]


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_fewer_members_answer_as_if_only_they_were_loaded(library: Path, backend: str) -> None:
    def started(members: int) -> Engine:
        ensemble = WorldModelEnsemble.from_members(list(checkpoint(5).ensemble.members)[:members])
        machine_code = (lambda: library) if backend == "native" else None
        engine = Engine(replace(checkpoint(), ensemble=ensemble), threads=1, library=machine_code)
        engine.start()
        return engine

    engine, (states, actions) = started(5), inputs(70, 5)

    for members in range(1, 5):
        seen = engine.rollout(states, actions, members)
        assert same_bits(seen, started(members).rollout(states, actions))
        assert (seen.uncertainty == 0).all() == (members == 1)
    assert same_bits(engine.rollout(states, actions, 5), engine.rollout(states, actions))


def test_launches_by_fewer_members_cost_less_and_are_timed_for_one_only(library: Path) -> None:
    engine = Engine(checkpoint(5), threads=1, library=lambda: library)
    engine.start()

    costs = engine.costs

    assert len(costs.fewer) == 4
    assert costs.of(None) is costs.of(5) is costs
    assert {x.launch_rows for x in costs.fewer} == {costs.launch_rows}
    # Only of a big launch is a fifth of the work surely less time.
    *by_few, by_all = [costs.of(members).step_s[-1] for members in range(1, 6)]
    assert by_few == sorted(by_few)
    assert by_few[0] < 0.6 * by_all
    rises = np.diff([*by_few, by_all])
    assert np.allclose(rises, rises[0])


def test_where_rows_are_padded_fewer_members_have_launches_of_one_row_count() -> None:
    engine = Engine(checkpoint(3), threads=1)
    engine.start()

    assert [engine.costs.of(members).launch_rows for members in (1, 2)] == [(64,), (64,)]
    states, actions = inputs(70, 3)
    whole = engine.rollout(states, actions, 1)
    for first, last in ((0, 1), (3, 10), (60, 70)):
        part = engine.rollout(states[first:last], actions[first:last], 1)
        assert same_bits(part, whole.part(first, last))


def test_launch_row_counts_of_a_cpu_are_dense_and_tiled() -> None:
    cpu = launch_row_counts("cpu")

    assert cpu[:9] == [8, 16, 24, 32, 40, 48, 56, 64, 80]
    assert launch_row_counts("cpu", is_padded=False) == [1, 2, 4, *cpu]
    assert cpu[-1] == 512
    assert not any(count % ROW_TILE for count in (*cpu, *launch_row_counts("cuda")))


def test_launch_row_counts_of_a_gpu_are_few_if_each_is_a_graph() -> None:
    graphs, fused = launch_row_counts("cuda"), launch_row_counts("cuda", is_padded=False)

    assert len(graphs) == 5
    assert set(graphs) < set(fused)
    assert (fused[0], fused[-1]) == (graphs[0], graphs[-1]) == (8, 4096)
    # Costs are known to a quarter at most.
    assert all(b <= max(1.25 * a, a + 8) for a, b in itertools.pairwise(fused))


class Moody(nn.Module):
    """An ensemble that does not fit the memory, or is not the same in every shape."""

    def __init__(self, inner: WorldModelEnsemble) -> None:
        super().__init__()
        self.inner = inner
        self.member_count = inner.member_count
        self.fits_rows = 10**9
        self.error: Exception = torch.OutOfMemoryError("CUDA out of memory (pretended)")
        self.odd_rows = 0
        self.is_odd_in_place = False
        self.factor = 1.0
        self.launches: list[int] = []

    def step(self, members: int | None = None) -> Any:
        step = self.inner.step(members)
        taken: Any = partial(self.take, step)
        taken.member_count = step.member_count
        return taken

    def take(
        self,
        step: EnsembleStep,
        states: torch.Tensor,
        log_alive: torch.Tensor,
        action: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        rows = len(action)
        self.launches.append(rows)
        if rows > self.fits_rows:
            raise self.error
        after, log_alive, summary = step(states, log_alive, action)
        factor = torch.full((rows, 1), self.factor)
        if rows == self.odd_rows or self.is_odd_in_place:
            factor[3] = 1.001
        return after, log_alive, summary * factor


def moody(**moods: Any) -> tuple[Moody, Engine]:
    base = checkpoint()
    ensemble = Moody(base.ensemble)
    for name, value in moods.items():
        setattr(ensemble, name, value)
    moody = replace(base, ensemble=ensemble)  # type: ignore[arg-type]
    return ensemble, Engine(moody, device="cpu", threads=1)


def test_out_of_memory_splits_the_launch_and_goes_on() -> None:
    engine = Engine(checkpoint(), device="cpu", threads=1)
    engine.start()
    ensemble, small = moody()
    small.start()
    counted: list[str] = []
    small.report_errors_to(counted.append)
    ensemble.fits_rows = 16
    states, actions = inputs(50, 3)

    with structlog.testing.capture_logs() as lines:
        seen = small.rollout(states, actions)

    truth = engine.rollout(states, actions)
    assert row_bits(seen, 0) == row_bits(truth, 0)
    assert [row_bits(seen, k) for k in range(50)] == [row_bits(truth, k) for k in range(50)]
    assert counted == ["out_of_memory"] * len(lines)
    assert {line["event"] for line in lines} == {"launch split"}


def test_a_launch_that_never_fits_is_an_error() -> None:
    ensemble, small = moody()
    small.start()
    ensemble.fits_rows = 0

    with pytest.raises(RuntimeError, match="smallest launch"):
        small.rollout(*inputs(20, 2))


def test_a_shape_with_other_bits_is_dropped_and_not_used() -> None:
    ensemble, small = moody(odd_rows=24)

    with structlog.testing.capture_logs() as lines:
        small.start()
    ensemble.launches.clear()
    small.rollout(*inputs(20, 2))

    assert 24 not in small.costs.launch_rows
    assert ensemble.launches == [32, 32]
    assert (lines[0]["event"], lines[0]["rows"]) == ("launch shapes dropped", [24])


def test_of_shapes_with_different_bits_the_group_that_takes_least_time_is_kept() -> None:
    """As PyTorch's products on a GPU: 8 rows get other bits than 64, 256 and more."""
    one, other = {(k, b"one") for k in range(8)}, {(k, b"other") for k in range(8)}
    bits = {8: one, 64: other, 256: other, 1024: other, 4096: one}

    flat = _best_group(bits, {8: 1.0, 64: 1.0, 256: 1.0, 1024: 1.1, 4096: 9.0})
    steep = _best_group(bits, {8: 0.1, 64: 8.0, 256: 9.0, 1024: 10.0, 4096: 11.0})

    assert flat == [64, 256, 1024]
    assert steep == [8, 4096]


def test_a_launch_of_few_rows_may_have_some_of_the_bits_only() -> None:
    all_rows = {(k, b"x") for k in range(8)}
    bits = {1: {(1, b"x")}, 2: {(1, b"x"), (2, b"odd")}, 8: all_rows}

    assert _best_group(bits, {1: 1.0, 2: 1.0, 8: 1.0}) == [1, 8]


def test_launches_that_do_not_fit_at_the_start_are_left_out() -> None:
    _, small = moody(fits_rows=40)

    with structlog.testing.capture_logs() as lines:
        small.start()

    assert small.costs.launch_rows[-1] == 40
    assert lines[-1]["event"] == "bigger launches dropped"
    states, actions = inputs(100, 2)
    truth = Engine(checkpoint(), device="cpu", threads=1)
    truth.start()
    seen, expected = small.rollout(states, actions), truth.rollout(states, actions)
    assert [row_bits(seen, k) for k in range(100)] == [row_bits(expected, k) for k in range(100)]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),  # pinned memory
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"),  # a launch of our kernels
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
    ids=repr,
)
def test_memory_that_is_missing_anywhere_splits_a_launch(error: Exception) -> None:
    ensemble, small = moody()
    small.start()
    ensemble.fits_rows, ensemble.error = 16, error
    ensemble.launches.clear()

    small.rollout(*inputs(32, 1))

    assert ensemble.launches == [32, 16, 16]


def short_of_memory(error: Exception, fits_rows: int) -> Any:
    """Return `blank` of a backend whose predictions do not fit the host's memory."""

    def blank(rows: int, horizon: int, state_dim: int) -> Prediction:
        if rows > fits_rows:
            raise error
        return Prediction.blank(rows, horizon, state_dim)

    return staticmethod(blank)


HOST_FULL = [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes.")]


@pytest.mark.parametrize("error", HOST_FULL, ids=repr)
def test_launches_whose_answers_do_not_fit_the_host_are_left_out_at_the_start(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(Eager, "blank", short_of_memory(error, 40))
    _, small = moody()

    with structlog.testing.capture_logs() as lines:
        small.start()

    assert small.costs.launch_rows[-1] == 40
    assert (lines[-1]["event"], lines[-1]["reason"]) == (
        "bigger launches dropped",
        "the prediction does not fit the host's memory",
    )


@pytest.mark.parametrize("error", HOST_FULL, ids=repr)
def test_an_answer_that_does_not_fit_the_host_fails_alone(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    _, small = moody()
    small.start()
    monkeypatch.setattr(Eager, "blank", short_of_memory(error, 40))

    with pytest.raises(DeviceFullError, match="host's memory"):
        small.rollout(*inputs(50, 2))
    small.rollout(*inputs(20, 2))


def test_another_fault_of_the_answers_memory_is_told_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, small = moody()
    small.start()
    monkeypatch.setattr(Eager, "blank", short_of_memory(RuntimeError("illegal address"), 0))

    with pytest.raises(RuntimeError, match="illegal address"):
        small.rollout(*inputs(8, 2))


def test_a_host_without_memory_stops_the_start_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full() -> None:
        raise MemoryError

    _, small = moody()
    monkeypatch.setattr(small, "_measured_costs", full)

    with pytest.raises(StartupError, match="does not run on cpu: MemoryError"):
        small.start()


def test_a_model_whose_bits_depend_on_the_place_is_told() -> None:
    _, small = moody(is_odd_in_place=True)

    with structlog.testing.capture_logs() as lines:
        small.start()

    assert [(line["event"], line["members"]) for line in lines] == [
        ("rows are not reproducible", None),
        ("rows are not reproducible", 1),
    ]
    assert small.costs.launch_rows == tuple(launch_row_counts("cpu"))


def test_the_canary_notices_a_prediction_that_is_not_finite() -> None:
    ensemble, small = moody()
    small.start()
    ensemble.factor = float("nan")

    with pytest.raises(RuntimeError, match="not finite"):
        small.canary()


def test_a_model_that_does_not_run_stops_the_start() -> None:
    _, small = moody(fits_rows=0)

    with pytest.raises(StartupError, match="does not run on cpu"):
        small.start()


def test_a_missing_device_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(StartupError, match="no CUDA device"):
        Engine(checkpoint(), device="cuda").start()


@pytest.mark.parametrize("members", [None, 1])
def test_an_attribution_is_of_the_sequence_and_changes_no_answer(
    engine: Engine, members: int | None
) -> None:
    states, actions = inputs(1, 5)
    before = engine.rollout(states, actions, members)

    pieces = engine.explain(states[0], actions[0], members)
    attribution = None
    while attribution is None:
        try:
            next(pieces)
        except StopIteration as end:
            attribution = end.value
        assert same_bits(engine.rollout(states, actions, members), before)

    expected = crash_probability(before.dones)[0]
    assert attribution.crash_probability == pytest.approx(expected, rel=1e-4)
    assert abs(attribution.residual) < 1e-3
