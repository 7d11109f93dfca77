"""Machine code beside the model that it is made of."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.backends import native
from models.backends.backend import NotCompiledError
from models.backends.native import Native, compile_library, library_file
from models.backends.packing import pack
from models.checkpoint import Architecture, load_checkpoint
from models.highway import highway_spec
from models.network.ensemble import WorldModelEnsemble
from models.network.world_model import WorldModel
from models.prediction import Array, Prediction
from models.road_users import road_users_spec
from models.spec import Spec, anonymous_spec
from service.settings import PRETRAINED

HIGHWAY = highway_spec()
SIZED = road_users_spec()
NUMBERS = ("states", "rewards", "dones", "uncertainty")


def rows_of(spec: Spec, rows: int, horizon: int, seed: int = 0) -> tuple[Array, Array]:
    """Return states and actions over the whole of their ranges, some neighbours absent."""
    rng = np.random.default_rng(seed)
    low, high = (np.array([getattr(f, x) for f in spec.state]) for x in ("low", "high"))
    states = rng.uniform(low, high, (rows, spec.state_dim))
    for slot in spec.geometry.slots if spec.geometry else ():
        is_there, gate = rng.integers(0, 2, rows), spec.state_index(slot.gate)
        states[:, gate] = is_there if slot.has_presence else is_there * states[:, gate]
    low, high = (np.array([getattr(f, x) for f in spec.action]) for x in ("low", "high"))
    actions = rng.uniform(low, high, (rows, horizon, spec.action_dim))
    return states.astype(np.float32), actions.astype(np.float32)


def rows_for(name: str, rows: int, horizon: int) -> tuple[Array, Array]:
    """Return rows that fit one of `MODELS`."""
    return rows_of(SPECS.get(name, HIGHWAY), rows, horizon)


def rolled_out(
    backend: Native, states: Array, actions: Array, *slices: int, members: int | None = None
) -> Prediction:
    prediction = Prediction.blank(len(states), actions.shape[1], states.shape[1])
    rollout = backend.start(states, actions, len(states), prediction, members)
    for count in slices or (actions.shape[1],):
        rollout.advance(count)
    assert rollout.is_complete
    return prediction


def close(seen: Array, truth: torch.Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(torch.from_numpy(seen), truth, rtol=rtol, atol=atol)


def trained_like(ensemble: WorldModelEnsemble) -> WorldModelEnsemble:
    """Set every buffer to something of its own: what is left out must show."""
    generator = torch.Generator().manual_seed(7)

    def some(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    for member in ensemble.members:
        for name, low, high in (
            ("state_mean", -1.0, 1.0),
            ("state_scale", 5.0, 30.0),
            ("delta_scale", 0.01, 0.1),
            ("reward_mean", -1.0, 1.0),
            ("reward_scale", 0.5, 2.0),
            ("done_scale", 0.5, 1.5),
            ("done_shift", -3.0, -1.0),
        ):
            member.get_buffer(name).copy_(some(member.get_buffer(name), low, high))
    return ensemble.eval().requires_grad_(False)


def ensemble_of(make: Callable[[], WorldModel], members: int = 3) -> WorldModelEnsemble:
    torch.manual_seed(0)
    return trained_like(WorldModelEnsemble.from_members([make() for _ in range(members)]))


def mixed_spec() -> Spec:
    """A layout in which each slot has something else, and the ego a size, but not as wheelbase."""
    assert HIGHWAY.geometry is not None
    full, *_ = HIGHWAY.geometry.slots
    sized, short, plain = (
        replace(
            full,
            **{
                part: f"neighbour_{number}_{part}"
                for part in ("presence", "dx", "dy", "heading", "speed", "acceleration", "yaw_rate")
            },
        )
        for number in (2, 3, 4)
    )
    renamed = {
        "neighbour_2_acceleration": "neighbour_2_length",
        "neighbour_2_yaw_rate": "neighbour_2_width",
        "neighbour_3_presence": "neighbour_3_length",
        "neighbour_3_yaw_rate": "neighbour_3_width",
        "neighbour_4_acceleration": "length",
        "neighbour_4_yaw_rate": "width",
    }
    ranges = {"length": (0.0, 20.0), "width": (0.0, 4.0)}
    state = []
    for feature in HIGHWAY.state:
        name = renamed.get(feature.name, feature.name)
        low, high = ranges.get(name.rpartition("_")[2], (feature.low, feature.high))
        state.append(replace(feature, name=name, low=low, high=high))
    none: dict[str, Any] = {"acceleration": None, "yaw_rate": None}
    slots = (
        full,
        replace(sized, **none, length="neighbour_2_length", width="neighbour_2_width"),
        replace(
            short,
            presence=None,
            yaw_rate=None,
            length="neighbour_3_length",
            width="neighbour_3_width",
        ),
        replace(plain, **none),
    )
    geometry = replace(HIGHWAY.geometry, slots=slots, length="length", width="width")
    return replace(HIGHWAY, state=tuple(state), geometry=geometry, example=None)


SPECS = {"sizes": SIZED, "sizes, no kinematics": SIZED, "mixed": mixed_spec()}

MODELS: dict[str, Callable[[], WorldModel]] = {
    "kinematics": lambda: Architecture(hidden_dims=(48, 40), kinematics=True).build(HIGHWAY),
    "geometry": lambda: Architecture(hidden_dims=(256, 256, 64)).build(HIGHWAY),
    "plain": lambda: Architecture(hidden_dims=(32,)).build(anonymous_spec(34, 3)),
    "relu": lambda: Architecture(hidden_dims=(64, 32), activation="relu").build(HIGHWAY),
    "tanh": lambda: Architecture(hidden_dims=(64, 32), activation="tanh").build(HIGHWAY),
    "sizes": lambda: Architecture(hidden_dims=(48, 40), kinematics=True).build(SIZED),
    "sizes, no kinematics": lambda: Architecture(hidden_dims=(64, 32)).build(SIZED),
    "mixed": lambda: Architecture(hidden_dims=(48, 40), kinematics=True).build(SPECS["mixed"]),
    "no residual": lambda: WorldModel(34, 3, (24, 32), residual=False),
}
LAYOUTS = ("kinematics", "sizes")
"""Models of the layouts `highway` and `road-users`."""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("members", [1, 3])
def test_a_prediction_is_the_ensembles(library: Path, name: str, members: int) -> None:
    ensemble = ensemble_of(MODELS[name], members)
    states, actions = rows_for(name, 37, 6)

    seen = rolled_out(Native(library, ensemble), states, actions)

    truth = ensemble.rollout(torch.from_numpy(states), torch.from_numpy(actions))
    close(seen.states, truth.states, rtol=2e-5, atol=2e-4)
    close(seen.rewards, truth.rewards, rtol=1e-4, atol=1e-5)
    close(seen.dones, truth.dones, rtol=2e-3, atol=1e-6)
    close(seen.uncertainty, truth.uncertainty, rtol=1e-4, atol=1e-5)


def test_the_bundled_model_agrees_over_the_whole_horizon(library: Path) -> None:
    loaded = load_checkpoint(PRETRAINED)
    states, actions = rows_of(loaded.spec, 64, 16, seed=1)

    seen = rolled_out(Native(library, loaded.ensemble), states, actions)

    truth = loaded.ensemble.rollout(torch.from_numpy(states), torch.from_numpy(actions))
    close(seen.states, truth.states, rtol=1e-4, atol=2e-3)
    close(seen.dones, truth.dones, rtol=1e-2, atol=1e-5)
    close(seen.uncertainty, truth.uncertainty, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*LAYOUTS, "mixed"])
def test_a_row_has_the_same_bits_in_any_company_and_any_slices(library: Path, name: str) -> None:
    backend = Native(library, ensemble_of(MODELS[name]))
    states, actions = rows_for(name, 60, 5)
    whole = rolled_out(backend, states, actions)
    threads = rolled_out(Native(library, ensemble_of(MODELS[name]), threads=3), states, actions)

    for first, last in ((0, 1), (3, 10), (7, 8), (20, 60), (59, 60)):
        part = rolled_out(backend, states[first:last], actions[first:last], 2, 1, 9)
        for name in NUMBERS:
            assert np.array_equal(getattr(part, name), getattr(whole, name)[first:last]), name
            assert np.array_equal(getattr(threads, name), getattr(whole, name)), name


def test_rows_that_share_a_start_need_not_repeat_it(library: Path) -> None:
    backend = Native(library, ensemble_of(MODELS["plain"]))
    states, actions = rows_for("plain", 9, 3)
    shared = np.broadcast_to(states[:1], states.shape)
    same_actions = np.broadcast_to(actions[:1], actions.shape)

    for given in ((shared, actions), (states, same_actions), (states.T.copy().T, actions)):
        seen = rolled_out(backend, *given)
        truth = rolled_out(backend, given[0].copy(), given[1].copy())
        for name in NUMBERS:
            assert np.array_equal(getattr(seen, name), getattr(truth, name)), name


@pytest.mark.parametrize("threads", [1, 2])
def test_steps_stop_while_a_file_is_readable(library: Path, threads: int) -> None:
    states, actions = rows_for("plain", 40, 6)
    backend = Native(library, ensemble_of(MODELS["plain"]), threads)
    whole = rolled_out(backend, states, actions)
    seen = Prediction.blank(len(states), actions.shape[1], states.shape[1])
    rollout = backend.start(states, actions, len(states), seen)
    reader, writer = os.pipe()
    try:
        assert rollout.advance(2, reader) == 2
        os.write(writer, b"x")
        # Each thread looks on its own, after a step of its own; all end at the same one.
        assert 1 <= rollout.advance(4, reader) < 4
        os.read(reader, 1)
        while not rollout.is_complete:
            assert rollout.advance(6, reader) >= 1
    finally:
        os.close(reader)
        os.close(writer)

    assert np.array_equal(seen.states, whole.states)


@pytest.mark.parametrize("activation", ["elu", "relu", "tanh"])
def test_activations_are_exact_to_a_few_units_in_the_last_place(
    library: Path, activation: str
) -> None:
    """The decoder of an identity network shows what an activation makes of each number."""
    model = WorldModel(32, 3, (32,), activation, residual=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        first, second = model.encoder[0], model.dynamics[0]
        assert isinstance(first, torch.nn.Linear)
        assert isinstance(second, torch.nn.Linear)
        first.weight.copy_(torch.eye(32))
        second.weight[:, :32] = torch.eye(32)
        model.decoder.weight.copy_(torch.eye(32))
    values = np.concatenate(
        [x * np.geomspace(1e-6, 120, 4096, dtype=np.float32) for x in (-1, 1)]
    ).reshape(-1, 32)

    ensemble = WorldModelEnsemble.from_members([model.eval().requires_grad_(False)])
    seen = rolled_out(Native(library, ensemble), values, np.zeros((len(values), 1, 3), np.float32))

    act = {"elu": torch.nn.ELU(), "relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh()}[activation]
    truth = act(act(torch.from_numpy(values).double()))
    np.testing.assert_allclose(seen.states[:, 1], truth.numpy(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", LAYOUTS)
def test_numbers_that_are_not_finite_stay_in_their_row(library: Path, name: str) -> None:
    backend = Native(library, ensemble_of(MODELS[name]))

    broken_rows_break_alone(name, partial(rolled_out, backend))


def broken_rows_break_alone(name: str, roll_out: Callable[[Array, Array], Prediction]) -> None:
    """Check that rows which are not finite spoil no other."""
    states, actions = rows_for(name, 20, 3)
    clean = roll_out(states, actions)
    states[4, 0], states[11, 7] = np.nan, np.inf

    seen = roll_out(states, actions)

    others = [row for row in range(20) if row not in (4, 11)]
    for name in NUMBERS:
        assert np.array_equal(getattr(seen, name)[others], getattr(clean, name)[others]), name
    assert not np.isfinite(seen.states[[4, 11], 1:]).all(-1).any()
    assert not np.isfinite(seen.uncertainty[[4, 11]]).any()


def test_the_library_is_compiled_once_and_named_by_source_and_processor(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = library.parent
    made_at = library.stat().st_mtime_ns

    assert compile_library(folder) == library
    assert library.stat().st_mtime_ns == made_at
    assert list(folder.iterdir()) == [library]
    monkeypatch.setattr(native, "processor", lambda: "another")
    assert library_file(folder) != library


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (subprocess.CalledProcessError(1, "c++", stderr="no such option\n"), "no such option"),
        (subprocess.TimeoutExpired("c++", 300), "more than 300 s"),
    ],
    ids=["refused", "too slow"],
)
def test_a_compiler_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, message: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(subprocess, "run", fail)

    with pytest.raises(NotCompiledError, match=message):
        compile_library(tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "field", ["Layer_weights", "Member_done_shift", "Model_slots", "Rows_dones"]
)
def test_code_for_another_layout_does_not_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    options = [f"-DAT_{field}=4" if f"_{field}=" in x else x for x in native._OPTIONS]
    monkeypatch.setattr(native, "_OPTIONS", options)

    with pytest.raises(NotCompiledError, match=f"Python puts {field.replace('_', '::', 1)} else"):
        compile_library(tmp_path)


def test_a_missing_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)

    with pytest.raises(NotCompiledError, match="no C\\+\\+ compiler"):
        compile_library(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NotCompiledError, match=r"cannot write into .*file"):
        compile_library(tmp_path / "file" / "cache")


def test_a_broken_library_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "steps.so"
    broken.write_bytes(b"not a library")

    with pytest.raises(NotCompiledError, match="cannot be loaded"):
        Native(broken, ensemble_of(MODELS["plain"]))


def test_without_the_kernels_list_of_abilities_others_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(self: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)

    assert isinstance(native.processor(), str)


def fewer_members_answer_alone(
    rolled_out: Callable[[WorldModelEnsemble, Array, Array, int | None], Prediction],
) -> None:
    """Compare the first members of three, in any company, with an ensemble of no others.

    Args:
        rolled_out: Computes rows by the first members of an ensemble; None: by all.
    """
    ensemble = ensemble_of(MODELS["kinematics"])
    states, actions = rows_for("kinematics", 40, 4)
    for members in (1, 2, 3):
        alone = WorldModelEnsemble.from_members(list(ensemble.members)[:members])
        truth = rolled_out(alone, states, actions, None)
        for rows in (slice(0, 40), slice(0, 1), slice(13, 30)):
            seen = rolled_out(ensemble, states[rows], actions[rows], members)
            for name in NUMBERS:
                assert np.array_equal(getattr(seen, name), getattr(truth, name)[rows]), name


def test_fewer_members_answer_as_an_ensemble_of_no_others(library: Path) -> None:
    def computed(
        ensemble: WorldModelEnsemble, states: Array, actions: Array, members: int | None
    ) -> Prediction:
        return rolled_out(Native(library, ensemble), states, actions, members=members)

    fewer_members_answer_alone(computed)


def test_rollouts_by_different_members_may_be_under_way_at_once(library: Path) -> None:
    backend = Native(library, ensemble_of(MODELS["kinematics"]))
    states, actions = rows_for("kinematics", 9, 6)
    truth = [rolled_out(backend, states, actions, members=members) for members in (1, 2, 3)]
    seen = [Prediction.blank(9, 6, states.shape[1]) for _ in truth]
    rollouts = [backend.start(states, actions, 9, x, k) for k, x in enumerate(seen, 1)]

    for _ in range(3):
        for rollout in rollouts:
            rollout.advance(2)

    for one, other in zip(seen, truth, strict=True):
        for name in NUMBERS:
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_weights_are_packed_once_whoever_computes() -> None:
    members = list(ensemble_of(MODELS["kinematics"], 5).members)

    block, places = pack(members, 0)

    assert len(block) < 5.1 * len(pack(members[:1], 0)[0])
    assert len(places) == 5
