"""What the GPU's kernels may take of a multiprocessor, found out without one."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from models.backends import fused, packing
from models.backends.fused import LARGE_TILE_ROWS, TILE_ROWS, Fused, compile_gpu
from models.backends.packing import layers_of, pack, padded
from models.checkpoint import load_checkpoint
from service.settings import PRETRAINED
from tests.test_models.test_backends.driver import Driver
from tests.test_models.test_backends.test_native import rows_of

CPU = torch.device("cpu")
KIB = 1024
BUDGET = 20_000
"""Wavefronts for 16 rows and a step by one member."""
MOST = {TILE_ROWS: 27_300, LARGE_TILE_ROWS: 30_500}
"""For a tile and step. That of 16 rows is over the budget: see docs/decisions/models.md."""
MULTIPROCESSORS = {TILE_ROWS: 1000, LARGE_TILE_ROWS: 1}
"""By which a single tile is of a size."""


@pytest.mark.parametrize("rows", MOST)
def test_a_tile_and_step_stay_within_their_wavefronts(driver: Driver, rows: int) -> None:
    driver.multiprocessors(MULTIPROCESSORS[rows])
    checkpoint = load_checkpoint(PRETRAINED, members=1)
    (member,) = checkpoint.ensemble.members
    backend = Fused(checkpoint.ensemble, CPU)
    prediction = backend.blank(rows, 1, checkpoint.spec.state_dim)
    states, actions = rows_of(checkpoint.spec, rows, 1)

    seen = driver.wavefronts(lambda: backend.compute(states, actions, prediction))

    assert sum(seen.values()) <= MOST[rows], seen
    # By hand: all weights but those of the heads' last layers are copied once, then read.
    layers = [layer for layer, _ in layers_of(member)]
    weights = [x.in_features * padded(x.out_features) for x in layers if x.out_features > 1]
    once = sum(weights) // 32
    assert once <= seen["copies"] <= 1.05 * once
    assert seen["loads"] > 2 * once


def test_rows_of_large_tiles_are_within_the_budget() -> None:
    assert MOST[LARGE_TILE_ROWS] * 16 <= BUDGET * LARGE_TILE_ROWS


def test_weights_that_a_warp_reads_at_once_lie_in_one_line() -> None:
    line, members = 128, list(load_checkpoint(PRETRAINED, members=2).ensemble.members)

    packed_bytes, places = pack(members, line)
    block = packed_bytes.tobytes()

    model = packing._Model.from_buffer_copy(block, places[-1])
    packed = (packing._Member * len(members)).from_buffer_copy(block, model.member - line)
    for member, of in zip(members, packed, strict=True):
        count = len(list(layers_of(member)))
        for layer in (packing._Layer * count).from_buffer_copy(block, of.layers - line):
            assert layer.weights % line == 0


@pytest.mark.parametrize("architecture", ["sm_86", "sm_90"], ids=["RTX A4000", "H100"])
def test_layers_are_computed_in_registers(
    monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    """What a thread has under way must not go through memory, and two blocks must fit."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    logs: list[str] = []

    def logged(program: Any) -> Any:
        log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
        nvrtc.nvrtcGetProgramLog(program, log)
        logs.append(log.decode(errors="replace"))
        return destroy(program)

    destroy = nvrtc.nvrtcDestroyProgram
    monkeypatch.setattr(nvrtc, "nvrtcDestroyProgram", logged)
    monkeypatch.setattr(fused, "GPU_DEFINITIONS", (*fused.GPU_DEFINITIONS, "--ptxas-options=-v"))
    compile_gpu(architecture)

    apply = re.findall(r"properties for \S*apply\S*\s+ptxas\s+\. +(.+)", logs[0])
    spills = re.findall(r"(\d+) bytes spill stores", logs[0])
    registers = re.findall(r"function '(\w+)'.+?Used (\d+) registers", logs[0], re.DOTALL)
    assert apply == ["0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"] * 4
    assert {*spills} == {"0"}
    most = {name: int(count) for name, count in registers}
    assert most["world_model_rollout"] <= 65536 // (2 * fused.THREADS)
    assert most["world_model_rollout_large"] <= 65536 // (2 * fused.LARGE_THREADS)


def test_blocks_fit_the_shared_memory_of_an_a4000_and_an_h100(driver: Driver) -> None:
    """CUDA's guide: 100 KiB a multiprocessor of compute 8.6, 228 of 9.0; a block takes 1 more."""
    small, large = Fused(load_checkpoint(PRETRAINED).ensemble, CPU)._kernels.shared_bytes

    assert 2 * (small + KIB) <= 100 * KIB
    assert large + KIB <= 100 * KIB
    assert 2 * (large + KIB) <= 228 * KIB
