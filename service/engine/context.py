"""A device's context that a fault has broken for good: how it is known, and that nothing is freed.

Freeing what is on a lost device, or pinned for it, ends the process by a signal: PyTorch asks the
device once more, where nothing can catch the answer.
"""

from __future__ import annotations

import torch

_kept: list[object] = []
"""What holds tensors of a lost device. A launch that fails with it adds itself, on the thread that
computes it, and `Engine.close` the engine; only the process's end, `os._exit` of the command line,
takes anything away."""


def context_works() -> bool:
    """Return whether CUDA can still be used by this process: some errors stay until it ends."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def keep(holder: object) -> None:
    """Never free what this holds.

    Args:
        holder: Of tensors of a lost device.
    """
    _kept.append(holder)
