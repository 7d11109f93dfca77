"""SUMO itself: its commands, and the one simulation that a process can have."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from training.simulation.bicycle import DT_S
from training.simulation.sumo.maps import RoadMap
from training.simulation.sumo.networks import NETWORKS, Attributes, Plan

MISSING = "SUMO is not installed: pip install 'world-model-service[training]'"

_OPTIONS = (
    *("--step-length", str(DT_S), "--step-method.ballistic"),
    # Who drives beside the middle of a lane is in the way of others by his true width.
    *("--lateral-resolution", "0.8"),
    # Whoever collides drives on: only the ego's collisions are looked for, by its rectangle.
    *("--collision.action", "none", "--time-to-teleport", "-1"),
    *("--no-step-log", "--no-warnings", "--xml-validation", "never"),
    *("--xml-validation.net", "never", "--xml-validation.routes", "never"),
)


def is_installed() -> bool:
    """Whether the packages of SUMO are there."""
    return all(find_spec(name) is not None for name in ("sumo", "libsumo"))


def _require() -> None:
    if not is_installed():
        raise ModuleNotFoundError(MISSING)


@cache
def _folder() -> Path:
    """Return a folder for this process's files, which goes with it."""
    folder = Path(tempfile.mkdtemp(prefix="world-model-sumo-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def xml(root: str, tag: str, items: Sequence[Attributes]) -> str:
    """Return elements with attributes, and nothing inside them, as a document."""
    return f"<{root}>{''.join(element(tag, item) for item in items)}</{root}>"


def element(tag: str, attributes: Attributes, inside: str = "") -> str:
    """Return one element."""
    words = " ".join(f"{name}={quoteattr(str(value))}" for name, value in attributes.items())
    return f"<{tag} {words}>{inside}</{tag}>" if inside else f"<{tag} {words}/>"


@cache
def road_map(network: str, variant: int) -> RoadMap:
    """Return the map of a network, built when it is first asked for in this process.

    Args:
        network: One of `NETWORKS`.
        variant: Which of its variants.

    Raises:
        ModuleNotFoundError: SUMO is not installed.
        RuntimeError: netconvert refuses the plan.
    """
    _require()
    plan = NETWORKS[network].variants[variant]()
    file = _folder() / f"{network}-{variant}.net.xml"
    _convert(plan, file)
    return RoadMap(file, plan.has_crossings)


def _convert(plan: Plan, file: Path) -> None:
    import sumo

    command = [str(Path(sumo.SUMO_HOME) / "bin" / "netconvert"), "--no-turnarounds", *plan.options]
    command += ["--offset.disable-normalization", "--xml-validation", "never", "-o", str(file)]
    parts = (
        ("nodes", "node", plan.nodes, "--node-files"),
        ("edges", "edge", plan.edges, "--edge-files"),
        ("connections", "connection", plan.connections, "--connection-files"),
    )
    for root, tag, items, option in parts:
        if items:
            part = file.with_suffix(f".{root}")
            part.write_text(xml(root, tag, items))
            command += [option, str(part)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"netconvert refuses the network {file.name}: {done.stderr.strip()}")


@cache
def _libsumo() -> Any:
    _require()
    # It prints a warning where pyarrow is of another version than what it was built with.
    with redirect_stdout(StringIO()):
        import libsumo
    return libsumo


class Session:
    """The simulation of this process: libsumo has one; whoever opens the next one ends it.

    Args:
        file: The network.
        traffic: Routes, as SUMO's XML.
        seed: Of all that SUMO draws, below 2^31.

    Attributes:
        api: libsumo.
    """

    _open: Session | None = None

    def __init__(self, file: Path, traffic: str, seed: int) -> None:
        libsumo = _libsumo()
        self.api: Any = libsumo
        routes = _folder() / "traffic.rou.xml"
        routes.write_text(traffic)
        options = ["-n", str(file), "-r", str(routes), "--seed", str(seed), *_OPTIONS]
        if libsumo.isLoaded():
            libsumo.load(options)
        else:
            libsumo.start(["sumo", *options])
        Session._open = self

    def step(self) -> None:
        """Simulate one step.

        Raises:
            RuntimeError: Another session was opened in this process.
        """
        if Session._open is not self:
            raise RuntimeError("SUMO has one simulation a process, and another one was started")
        self.api.simulationStep()
