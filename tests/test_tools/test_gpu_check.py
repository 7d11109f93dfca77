"""The check of the GPU's path, rehearsed without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu_check" / "check.sh"
WHOLE_S = 8 * 60
rehearsed = pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU: run the check itself"
)


def check(folder: Path, **settings: str) -> tuple[int, list[str]]:
    """Return the exit code of the check, and the lines that it prints."""
    places = {"OUT": str(folder), "WHEELS": str(folder / "none"), "PATIENCE": "20", "LIMIT": "5000"}
    done = subprocess.run(
        ["bash", str(SCRIPT)],
        env={**os.environ, **places, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def failures(lines: list[str]) -> list[str]:
    """Return what failed or was skipped, once each, in order."""
    found = (line for line in lines if line.startswith(("FAIL", "SKIP")))
    return [*dict.fromkeys(re.sub(r" (torch|s)=\S+$", "", line) for line in found)]


@pytest.mark.slow
@rehearsed
def test_without_a_gpu_the_kernels_are_played_and_the_rest_says_so(
    compiler: str, tmp_path: Path
) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    code, lines = check(tmp_path, ONLY="bits,shapes,memory,dead,speed", PY=sys.executable)

    assert "PASS bits repeat rounds=2 differ=0" in lines
    assert "PASS bits in any company and place rounds=2 differ=0" in lines
    for name in ("launch shapes", "memory", "dead context"):
        assert f"INFO {name}: no GPU" in lines
    assert "Not measured: no GPU here." in lines
    assert failures(lines) == []
    assert code == 0
    assert (tmp_path / "stages.tgz").exists()


@pytest.mark.slow
@rehearsed
def test_only_the_missing_gpu_fails_environment(compiler: str, tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    code, lines = check(tmp_path, ONLY="environment,numbers", PY=sys.executable)

    assert failures(lines) == ["FAIL torch sees a GPU", "FAIL stage environment code=1"]
    assert code == 1
    passed = "\n".join(line for line in lines if line.startswith("PASS"))
    assert "NVRTC compiles fused.cu" in passed
    for what in ("numbers 17x2", "comparison at start", "shared memory", "A4000, 289 rows"):
        assert what in passed


@pytest.mark.slow
@rehearsed
def test_the_service_is_asked_on_a_played_gpu_and_on_the_cpu(
    compiler: str, library: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cuda.bindings.driver")
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 3000\n")
    smi.chmod(0o755)

    code, lines = check(
        tmp_path,
        ONLY="http",
        PY=sys.executable,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        WORLD_MODEL_MEMBERS="1",
        WORLD_MODEL_DEFAULT_TIMEOUT_S="60",
        WORLD_MODEL_CACHE_DIR=str(library.parent),
    )

    assert failures(lines) == [], "\n".join(lines)
    assert code == 0
    passed = "\n".join(line for line in lines if line.startswith("PASS"))
    for what in (
        "service on cuda computes there by code of its own device=played GPU",
        "service on cpu computes there by code of its own device=cpu",
        "cuda: W1 @ 64 is answered",
        "cuda: W3 @ 4 is answered",
        "/metrics tells the device's memory",
        "memory by /metrics is nvidia-smi's",
        "both devices' answers, 64 rows",
        "both devices' verdicts",
        "service on cuda ends by SIGTERM",
    ):
        assert what in passed
    assert sum("W4" in line and "p99" in line for line in lines) == 3


def test_a_stage_that_fails_is_told_last(tmp_path: Path) -> None:
    code, lines = check(tmp_path, ONLY="numbers", PY="false")

    assert "FAIL stage numbers code=1" in lines[-1]
    assert code == 1


def test_the_limits_of_all_stages_add_up_to_less_than_the_whole() -> None:
    text = SCRIPT.read_text()
    (tools,) = re.findall(r"for tool in (.+); do", text)
    (whole,) = re.findall(r"LIMIT=\$\{LIMIT:-(\d+)\}", text)
    stages = re.findall(r"^ *stage (\S+) (\d+) ", text, re.MULTILINE)
    limits = [int(s) * (len(tools.split()) if name == "$tool" else 1) for name, s in stages]

    assert len(stages) == len(re.findall(r"\bstage \S+ \d", text)) >= 11
    assert sum(limits) <= int(whole) < WHOLE_S
