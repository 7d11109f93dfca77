"""The GPU's kernels, computed by a CPU thread after thread, beside the model that they are made of.

Tests whose fixture is `driver` go all the way of a GPU, to NVIDIA's bindings and beyond.

What only a GPU can show, that they run there and how fast, is in tests marked `gpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from models.backends import fused
from models.backends.backend import NotCompiledError
from models.backends.fused import Fused, compile_gpu
from models.checkpoint import Architecture, load_checkpoint
from models.network.ensemble import WorldModelEnsemble
from models.network.world_model import WorldModel
from models.prediction import Array, Prediction
from service.settings import PRETRAINED
from tests.test_models.test_backends.driver import Driver
from tests.test_models.test_backends.test_native import (
    HIGHWAY,
    LAYOUTS,
    MODELS,
    NUMBERS,
    broken_rows_break_alone,
    close,
    ensemble_of,
    fewer_members_answer_alone,
    rows_for,
    rows_of,
)

CPU = torch.device("cpu")


Make = Callable[[WorldModelEnsemble], Fused]


@pytest.fixture(params=[1, 1000], ids=["large tiles", "small tiles"])
def made(driver: Driver, request: pytest.FixtureRequest) -> Make:
    driver.multiprocessors(request.param)
    return lambda ensemble: Fused(ensemble, CPU)


def rolled_out(
    backend: Fused, states: Array, actions: Array, members: int | None = None
) -> Prediction:
    prediction = backend.blank(len(states), actions.shape[1], states.shape[1])
    rollout = backend.start(states, actions, len(states), prediction, members)
    assert rollout.advance(1) == actions.shape[1]
    assert rollout.is_complete
    return prediction


@pytest.mark.parametrize("name", [*MODELS, "wide"])
@pytest.mark.parametrize("members", [1, 3])
def test_they_say_what_the_ensemble_says(made: Make, name: str, members: int) -> None:
    def wide() -> WorldModel:
        return Architecture(hidden_dims=(300, 130, 40), kinematics=True).build(HIGHWAY)

    ensemble = ensemble_of(MODELS.get(name, wide), members)
    states, actions = rows_for(name, 37, 5)

    seen = rolled_out(made(ensemble), states, actions)

    truth = ensemble.rollout(torch.from_numpy(states), torch.from_numpy(actions))
    close(seen.states, truth.states, rtol=2e-5, atol=2e-4)
    close(seen.rewards, truth.rewards, rtol=1e-4, atol=1e-5)
    close(seen.dones, truth.dones, rtol=2e-3, atol=1e-6)
    close(seen.uncertainty, truth.uncertainty, rtol=1e-4, atol=1e-5)


def test_the_bundled_model_agrees_over_the_whole_horizon(made: Make) -> None:
    loaded = load_checkpoint(PRETRAINED)
    states, actions = rows_of(loaded.spec, 33, 16, seed=1)

    seen = rolled_out(made(loaded.ensemble), states, actions)

    truth = loaded.ensemble.rollout(torch.from_numpy(states), torch.from_numpy(actions))
    close(seen.states, truth.states, rtol=1e-4, atol=2e-3)
    close(seen.dones, truth.dones, rtol=1e-2, atol=1e-5)
    close(seen.uncertainty, truth.uncertainty, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_row_has_the_same_bits_in_any_company_and_any_place(made: Make, name: str) -> None:
    backend = made(ensemble_of(MODELS[name]))
    states, actions = rows_for(name, 300, 4)
    whole = rolled_out(backend, states, actions)

    for first, last in ((0, 1), (3, 10), (15, 17), (20, 60), (299, 300)):
        part = rolled_out(backend, states[first:last], actions[first:last])
        shorter = rolled_out(backend, states[first:last], actions[first:last, :2])
        for numbers in NUMBERS:
            expected = getattr(whole, numbers)[first:last]
            assert np.array_equal(getattr(part, numbers), expected), numbers
        assert np.array_equal(shorter.states, part.states[:, :3])


def test_fewer_members_answer_as_an_ensemble_of_no_others(made: Make) -> None:
    backends: dict[WorldModelEnsemble, Fused] = {}

    def computed(
        ensemble: WorldModelEnsemble, states: Array, actions: Array, members: int | None
    ) -> Prediction:
        backend = backends.setdefault(ensemble, made(ensemble))
        return rolled_out(backend, states, actions, members)

    fewer_members_answer_alone(computed)


@pytest.mark.parametrize("members", [1, 2, 3])
def test_fewer_members_are_compared_with_the_model_too(driver: Driver, members: int) -> None:
    Fused(ensemble_of(MODELS["kinematics"]), CPU).check(*rows_for("kinematics", 20, 3), members)


@pytest.mark.parametrize("name", MODELS)
def test_no_thread_waits_for_another_between_synchronisations(
    made: Make, driver: Driver, name: str
) -> None:
    """Threads that run one after the other, in either order, tell a race."""
    backend = made(ensemble_of(MODELS[name]))
    states, actions = rows_for(name, 37, 3)

    forward = rolled_out(backend, states, actions)
    driver.thread_order(is_backward=True)
    backward = rolled_out(backend, states, actions)

    for numbers in NUMBERS:
        assert np.array_equal(getattr(forward, numbers), getattr(backward, numbers)), numbers


@pytest.mark.parametrize("name", LAYOUTS)
def test_numbers_that_are_not_finite_stay_in_their_row(made: Make, name: str) -> None:
    broken_rows_break_alone(name, partial(rolled_out, made(ensemble_of(MODELS[name]))))


def test_a_part_of_a_prediction_is_written_where_it_is(made: Make) -> None:
    backend = made(ensemble_of(MODELS["plain"]))
    states, actions = rows_for("plain", 20, 3)
    whole = rolled_out(backend, states, actions)

    joined = backend.blank(20, 3, 34)
    for first, last in ((0, 13), (13, 20)):
        part = joined.part(first, last)
        backend.compute(states[first:last], actions[first:last], part)

    for name in NUMBERS:
        assert np.array_equal(getattr(joined, name), getattr(whole, name)), name


def test_rows_that_share_a_start_need_not_repeat_it(made: Make) -> None:
    backend = made(ensemble_of(MODELS["plain"]))
    states, actions = rows_for("plain", 9, 3)
    shared = np.broadcast_to(states[:1], states.shape)

    seen, truth = rolled_out(backend, shared, actions), rolled_out(backend, shared.copy(), actions)

    assert np.array_equal(seen.states, truth.states)


def last_speed(prediction: Prediction) -> None:
    prediction.states[:, -1, 0] += 5


def one_step(prediction: Prediction) -> None:
    prediction.states[:, 3, 7] *= 1.01


def one_member(prediction: Prediction) -> None:
    prediction.states[:, 1:] *= 1.0003  # a third of it one per mil off
    prediction.uncertainty *= 1.001


def one_tile(prediction: Prediction) -> None:
    prediction.states[16:32, 1:] = prediction.states[:16, 1:]


def small_hazards(prediction: Prediction) -> None:
    prediction.dones[prediction.dones < 1e-3] *= 2


@pytest.mark.parametrize("fault", [last_speed, one_step, one_member, one_tile, small_hazards])
def test_kernels_with_a_fault_are_not_used(
    driver: Driver, fault: Callable[[Prediction], None]
) -> None:
    class Wrong(Fused):
        def compute(
            self,
            states: Array,
            actions: Array,
            prediction: Prediction,
            members: int | None = None,
        ) -> None:
            super().compute(states, actions, prediction, members)
            fault(prediction)

    loaded = load_checkpoint(PRETRAINED, members=2)
    rows = rows_of(loaded.spec, 160, 6)

    Fused(loaded.ensemble, CPU).check(*rows)
    with pytest.raises(NotCompiledError, match="differ from the model's"):
        Wrong(loaded.ensemble, CPU).check(*rows)


def test_an_infinite_number_hides_no_error() -> None:
    truth = np.ones((160, 3), np.float32)
    truth[5, 1] = np.inf

    assert fused.relative_error(truth.copy(), truth) == 0
    assert fused.relative_error(np.where(truth == 1, 1.01, truth), truth) > 0.009


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_row_that_the_last_bit_decides_is_no_fault(driver: Driver, name: str) -> None:
    class Another(Fused):
        def compute(
            self,
            states: Array,
            actions: Array,
            prediction: Prediction,
            members: int | None = None,
        ) -> None:
            super().compute(states, actions, prediction, members)
            prediction.states[77, 1:] += 1

    ensemble, rows = ensemble_of(MODELS[name]), rows_for(name, 160, 6)

    Another(ensemble, CPU).check(*rows)


@pytest.mark.parametrize("name", ["bundled", *LAYOUTS])
def test_both_sizes_of_tiles_give_a_row_the_same_bits(driver: Driver, name: str) -> None:
    driver.multiprocessors(4)
    if name == "bundled":
        loaded = load_checkpoint(PRETRAINED, members=2)
        ensemble, (states, actions) = loaded.ensemble, rows_of(loaded.spec, 70, 4)
    else:
        ensemble, (states, actions) = ensemble_of(MODELS[name], 2), rows_for(name, 70, 4)
    backend = Fused(ensemble, CPU)

    large = rolled_out(backend, states, actions)
    small = rolled_out(backend, states[30:40], actions[30:40])

    for numbers in NUMBERS:
        assert np.array_equal(getattr(large, numbers)[30:40], getattr(small, numbers)), numbers


def test_a_device_with_too_little_shared_memory_is_told(made: Make, driver: Driver) -> None:
    ensemble = ensemble_of(MODELS["plain"])
    needed, _ = made(ensemble)._kernels.shared_bytes
    driver.shared_bytes(needed)
    made(ensemble)

    driver.shared_bytes(needed - 1)
    with pytest.raises(
        NotCompiledError, match=r"does not take fused\.cu: CUDA_ERROR_INVALID_VALUE"
    ):
        made(ensemble)


def test_machine_code_that_the_device_refuses_is_told(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "compile_gpu", lambda architecture: b"for something else")

    with pytest.raises(NotCompiledError, match="CUDA_ERROR_INVALID_IMAGE"):
        made(ensemble_of(MODELS["plain"]))


def test_a_launch_that_the_device_refuses_fails(made: Make, driver: Driver) -> None:
    backend = made(ensemble_of(MODELS["plain"]))
    driver.launch_error(702)

    with pytest.raises(RuntimeError, match="CUDA_ERROR_LAUNCH_TIMEOUT"):
        rolled_out(backend, *rows_for("plain", 3, 2))

    driver.launch_error(0)
    assert np.isfinite(rolled_out(backend, *rows_for("plain", 3, 2)).states).all()


@pytest.mark.parametrize("architecture", ["sm_86", "sm_90"], ids=["RTX A4000", "H100"])
def test_nvidias_compiler_takes_the_source(architecture: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")

    binary = compile_gpu(architecture)

    assert binary.startswith(b"\x7fELF")
    assert b"world_model_rollout" in binary
    assert b"world_model_combine" in binary


@pytest.mark.parametrize(
    ("option", "message"),
    [("AT_Model_slots=4", "Python puts Model::slots elsewhere"), ("TRACE_EXTRAS=4", "columns")],
)
def test_kernels_for_another_layout_do_not_compile(
    monkeypatch: pytest.MonkeyPatch, option: str, message: str
) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    name = option.partition("=")[0]
    options = [f"-D{option}" if f"-D{name}=" in x else x for x in fused.GPU_DEFINITIONS]
    monkeypatch.setattr(fused, "GPU_DEFINITIONS", options)

    with pytest.raises(NotCompiledError, match=message):
        compile_gpu("sm_86")


def test_what_nvidias_compiler_refuses_is_told() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")

    with pytest.raises(NotCompiledError, match=r"refuses sm_10: .*architecture"):
        compile_gpu("sm_10")


def test_without_nvidias_compiler_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)

    with pytest.raises(NotCompiledError, match="not at hand"):
        compile_gpu("sm_86")
