"""Memory of the host that a GPU copies fast, and how missing memory is told from other faults."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_WORDS = (
    "out of memory",  # CUDA, its pinned memory too; a launch of our own kernels
    "allocate memory",  # DefaultCPUAllocator: can't allocate memory
    "not enough memory",  # the same on Windows
    "alloc failed",  # CUBLAS_STATUS_ALLOC_FAILED
    "bad alloc",  # std::bad_alloc, as PyTorch passes it on
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell missing memory, of the device or of the host, from other faults.

    PyTorch has a class for its own allocator on the device alone; the rest is known by its words.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error).lower().replace("_", " ")
    return isinstance(error, RuntimeError) and any(known in words for known in _WORDS)


def host_memory(*shape: int, is_pinned: bool) -> Tensor:
    """Return memory of the host, of any value: ordinary memory where no more can be pinned.

    Args:
        shape: Of the tensor, float32.
        is_pinned: Whether a device copies from or to it.

    Raises:
        RuntimeError: There is none.
    """
    if is_pinned:
        try:
            return torch.empty(shape, pin_memory=True)
        except RuntimeError as exc:
            if not is_out_of_memory(exc):
                raise
            _warn_of_slow_copies(str(exc).partition("\n")[0])
    return torch.empty(shape)


@functools.cache  # once a reason: it may be missing at each launch
def _warn_of_slow_copies(reason: str) -> None:
    log.warning("memory is not pinned, copies to and from the GPU are slower: %s", reason)
