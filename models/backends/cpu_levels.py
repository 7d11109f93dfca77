"""Machine code for processors of a whole level: compiled here, used where there is no compiler.

`models.backends.native` compiles for the very processor it runs on. An image is built on one
machine and runs on others: it carries a library for each level, and the best that a machine can run
is taken.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from models.backends.backend import NotCompiledError
from models.backends.code_cache import fault_of
from models.backends.native import (
    checked_folder,
    compile_cpu,
    compile_library,
    named_library,
    processor,
)

log = logging.getLogger(__name__)

_V3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
LEVELS = {
    "x86-64-v4": f"{_V3} avx512f avx512bw avx512cd avx512dq avx512vl",
    "x86-64-v3": _V3,
}
"""Best first, by their names for -march, with the flags in /proc/cpuinfo that they need: those of
the x86-64 psABI, where lzcnt is called abm."""


def compile_levels(folder: Path) -> list[Path]:
    """Make the libraries of all levels, best first.

    Args:
        folder: Where they are kept; made if missing.

    Raises:
        NotCompiledError: As for `compile_library`; compilers of other processors refuse, too.
    """
    return [compile_cpu(named_library(folder, level), level) for level in LEVELS]


def usable_library(folder: Path) -> Path:
    """Return this machine's own library, compiled if need be, or else the best level's.

    Args:
        folder: Where both are kept.

    Raises:
        NotCompiledError: Neither can be had; the message says why none was compiled.
    """
    folder = checked_folder(folder)
    try:
        return compile_library(folder)
    except NotCompiledError:
        able = set(processor().split())
        for level, needed in LEVELS.items():
            path = named_library(folder, level)
            if not able.issuperset(needed.split()):
                continue
            fault = fault_of(path)
            if fault is None:
                return path
            if os.path.lexists(path):
                log.warning("machine code passed over: %s %s", path, fault)
        raise
