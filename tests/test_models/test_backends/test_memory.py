"""Missing memory, told from other faults; and memory that cannot be pinned."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from models.backends import memory
from models.backends.memory import host_memory, is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
    ids=str,
)
def test_missing_memory_is_known(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS"),
        ValueError("out of memory"),
    ],
    ids=str,
)
def test_other_faults_are_not_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_what_pytorch_and_numpy_raise_on_a_host_is_known() -> None:
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(2**50)
    with pytest.raises(MemoryError) as numpys:
        np.empty(2**50, np.float32)

    assert is_out_of_memory(torchs.value)
    assert is_out_of_memory(numpys.value)


def unpinnable(error: RuntimeError) -> Any:
    """Return `torch.empty` as it is where no memory can be pinned."""
    works = torch.empty

    def empty(*given: Any, pin_memory: bool = False, **named: Any) -> torch.Tensor:
        if pin_memory:
            raise error
        return works(*given, **named)

    return empty


def test_memory_that_cannot_be_pinned_is_ordinary_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "empty", unpinnable(RuntimeError("CUDA error: out of memory\nm")))
    memory._warn_of_slow_copies.cache_clear()

    with caplog.at_level(logging.WARNING):
        shapes = [host_memory(2, 3, is_pinned=True).shape for _ in range(3)]

    assert shapes == [(2, 3)] * 3
    assert caplog.messages == [
        "memory is not pinned, copies to and from the GPU are slower: CUDA error: out of memory"
    ]


def test_another_fault_of_pinning_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", unpinnable(RuntimeError("CUDA error: illegal address")))

    with pytest.raises(RuntimeError, match="illegal address"):
        host_memory(3, is_pinned=True)
