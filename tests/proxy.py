"""HAProxy with the repository's file, in front of two addresses."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.test_end_to_end.conftest import free_port

CONFIG = Path(__file__).parents[1] / "deploy" / "haproxy" / "haproxy.cfg"
PATIENCE_S = 60.0
_OF_ROOT = ("user ", "group ")
"""Nobody else may become another user."""


@dataclass
class Proxy:
    """A running HAProxy.

    Attributes:
        url: Of its front.
        statistics: URL of what it says of itself.
    """

    process: subprocess.Popen[bytes]
    url: str
    statistics: str
    log: Path

    def rows(self) -> dict[tuple[str, str], dict[str, str]]:
        """Return its table of statistics: by proxy and server, values by column."""
        text = httpx.get(f"{self.statistics}/;csv").text.removeprefix("# ")
        return {(row["pxname"], row["svname"]): row for row in csv.DictReader(io.StringIO(text))}

    def wait_until(self, server: str, status: str) -> None:
        """Wait until it says of a server that it is `UP` or `DOWN`."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.rows()["world-model", server]["status"] == status:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"{server} was not {status} in {PATIENCE_S:g} s")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def launch_proxy(folder: Path, a: str, b: str) -> Proxy:
    """Start one that writes its log into a folder; it may not listen yet.

    Args:
        folder: For its files.
        a: `HOST:PORT` of the first instance.
        b: Of the second one.
    """
    lines = CONFIG.read_text().splitlines(keepends=True)
    if os.geteuid() != 0:
        lines = [line for line in lines if not line.strip().startswith(_OF_ROOT)]
    config, log = folder / "haproxy.cfg", folder / "haproxy.log"
    config.write_text("".join(lines))
    front, statistics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    addresses = {"FRONT": front, "INSTANCE_A": a, "INSTANCE_B": b, "STATISTICS": statistics}
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["haproxy", "-db", "-f", config],
            env={**os.environ, **addresses, "ADMIN_SOCKET": str(folder / "admin.sock")},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    return Proxy(process, f"http://{front}", f"http://{statistics}", log)
