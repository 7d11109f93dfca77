"""The check of the GPU's path, rehearsed without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu_check" / "check.sh"


def check(folder: Path, **settings: str) -> list[str]:
    """Return the lines that the check prints."""
    places = {"OUT": str(folder), "WHEELS": str(folder / "none"), "PATIENCE": "8", "LIMIT": "3000"}
    done = subprocess.run(
        ["bash", str(SCRIPT)],
        env={**os.environ, **places, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run the check itself")
def test_without_a_gpu_the_kernels_are_played_and_the_rest_says_so(
    compiler: str, tmp_path: Path
) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    lines = check(tmp_path, ONLY="bits,shapes,memory,dead,speed", PY=sys.executable)

    assert "PASS bits repeat rounds=2 differ=0" in lines
    assert "PASS bits in any company and place rounds=2 differ=0" in lines
    for name in ("launch shapes", "memory", "dead context"):
        assert f"INFO {name}: no GPU" in lines
    assert "Not measured: no GPU here." in lines
    assert not [line for line in lines if line.startswith(("FAIL", "SKIP"))]
    assert (tmp_path / "stages.tgz").exists()


def test_a_stage_that_fails_is_told_last(tmp_path: Path) -> None:
    assert "FAIL stage numbers code=1" in check(tmp_path, ONLY="numbers", PY="false")[-1]
