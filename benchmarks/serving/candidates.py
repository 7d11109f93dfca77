"""Who is measured: our service, the limits of what any service could reach, and rivals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving import echo
from benchmarks.serving.dialects import OURS, PLAIN_JSON, TENSORS, Dialect

ROOT = Path(__file__).parents[2]
RIVALS = ROOT / "benchmarks" / "rivals"
ENVIRONMENTS = ROOT / ".bench" / "rivals"
"""Ignored by git; a folder a rival."""

LONGEST_INSTALL_S = 1800
SERVICE = "ours"
ECHO, ENGINE = "echo", "engine"
"""The limits: HTTP without a model, the model without HTTP."""


class NotMeasuredError(Exception):
    """A candidate cannot be measured; the message says why, in words fit for the report."""


@dataclass(frozen=True)
class Files:
    """What servers are started with.

    Attributes:
        checkpoint: Folder that our service serves.
        weights: The same weights as a plain state_dict.
        answer_sizes: Bytes of our answer, by kind of request.
    """

    checkpoint: Path
    weights: Path
    answer_sizes: Mapping[str, int]


@dataclass(frozen=True)
class Candidate:
    """A server that can be started.

    Attributes:
        name: Picks it on the command line.
        title: Shown in tables.
        dialect: How it wants to be asked.
        command: Files, port -> command line.
        environment: Files, port -> variables added to ours.
        is_checked: Whether its answers are those of the model.
        requirements: What must be installed first; None: nothing.
    """

    name: str
    title: str
    dialect: Dialect
    command: Callable[[Files, int], list[str]]
    environment: Callable[[Files, int], dict[str, str]] = lambda files, port: {}
    is_checked: bool = True
    requirements: Path | None = field(default=None)


def our_command(files: Files, port: int, **settings: str) -> list[str]:
    """Return the command line of our service: on a CPU, with one thread unless told otherwise."""
    # Not the installed script: it would serve the code of whatever checkout was installed.
    start = "from service.cli import main; main()"
    options = {
        "port": str(port),
        "checkpoint": str(files.checkpoint),
        "device": "cpu",
        # A closed loop counts answers: rivals get as long.
        "default-timeout-s": "30",
        "log-level": "warning",
        "threads": "1",
        **settings,
    }
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, "-c", start, "serve", *given]


def _echo_sizes(files: Files, port: int) -> dict[str, str]:
    sizes = {PLAIN_JSON.path(kind): size for kind, size in files.answer_sizes.items()}
    return {echo.PORT: str(port), echo.SIZES: json.dumps(sizes)}


def _rival(name: str, title: str, dialect: Dialect = PLAIN_JSON) -> Candidate:
    def command(files: Files, port: int) -> list[str]:
        return [str(environment_python(name)), str(RIVALS / name / "server.py")]

    def environment(files: Files, port: int) -> dict[str, str]:
        return {
            "BENCH_PORT": str(port),
            "BENCH_WEIGHTS": str(files.weights),
            "PYTHONPATH": str(RIVALS),
        }

    requirements = RIVALS / name / "requirements.txt"
    return Candidate(name, title, dialect, command, environment, requirements=requirements)


OUR_SERVICE = Candidate(SERVICE, "this service", OURS, our_command)
ECHO_LIMIT = Candidate(
    ECHO,
    "limit: ASGI echo",
    PLAIN_JSON,
    lambda files, port: [sys.executable, "-m", "benchmarks.serving.echo"],
    _echo_sizes,
    is_checked=False,
)
ENGINE_TITLE = "limit: engine in process"
RIVAL_SERVERS = (
    _rival("fastapi", "FastAPI"),
    _rival("mosec", "mosec + orjson"),
    _rival("litserve", "LitServe"),
    _rival("ray", "Ray Serve"),
    _rival("mlserver", "MLServer", TENSORS),
)
SERVERS = (OUR_SERVICE, ECHO_LIMIT, *RIVAL_SERVERS)
NAMES = (SERVICE, ECHO, ENGINE, *(rival.name for rival in RIVAL_SERVERS))
TITLES = {ENGINE: ENGINE_TITLE} | {server.name: server.title for server in SERVERS}


def environment_python(name: str) -> Path:
    """Return the interpreter of a rival's environment."""
    return ENVIRONMENTS / name / "bin" / "python"


def installed_version(requirements: Path) -> str:
    """Return the first pinned requirement, the rival itself, as "name version"."""
    return requirements.read_text().splitlines()[0].replace("==", " ")


def install(candidate: Candidate) -> None:
    """Make a rival's virtual environment unless it is there with the same requirements.

    Raises:
        NotMeasuredError: Its packages cannot be installed.
    """
    if candidate.requirements is None:
        return
    folder = ENVIRONMENTS / candidate.name
    wanted, stamp = candidate.requirements.read_text(), folder / "requirements.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"==> Installing {candidate.title} into {folder.relative_to(ROOT)}", flush=True)
    pip = [str(environment_python(candidate.name)), "-m", "pip", "install", "--quiet"]
    try:
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([*pip, "--disable-pip-version-check", "-r", str(candidate.requirements)])
    except (subprocess.SubprocessError, OSError) as exc:
        raise NotMeasuredError("its packages could not be installed here") from exc
    stamp.write_text(wanted)


def _run(command: list[str]) -> None:
    """Run a step of an installation; what it complains about goes to the console."""
    # A PYTHONPATH of ours would put our packages into the rival's environment.
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        command, check=True, timeout=LONGEST_INSTALL_S, stdout=subprocess.DEVNULL, env=environment
    )
