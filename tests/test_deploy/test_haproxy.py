"""HAProxy with the repository's file: what it is told, what it does, and an upgrade through it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.rolling import KINDS, PHASES, Played, connected, play
from benchmarks.serving.figures import percentile
from service.errors import SERVICE_ERRORS
from service.settings import Settings
from tests.conftest import lacks
from tests.proxy import CONFIG, Proxy, launch_proxy

TEXT = CONFIG.read_text()
SETTINGS = Settings()
PAGE = (Path(__file__).parents[2] / "docs" / "scale-out.md").read_text()


@pytest.fixture(scope="module", autouse=True)
def haproxy() -> None:
    if shutil.which("haproxy") is None:
        lacks("needs HAProxy: apt-get install haproxy")


def seconds(keyword: str) -> float:
    """Return a time of the file in seconds."""
    found = re.search(rf"\b{keyword} +(\d+)(ms|s)\b", TEXT)
    assert found is not None, keyword
    return int(found[1]) * {"ms": 0.001, "s": 1.0}[found[2]]


def number(keyword: str) -> int:
    found = re.search(rf"\b{keyword} +(\d+)\b", TEXT)
    assert found is not None, keyword
    return int(found[1])


def test_haproxy_accepts_the_file_without_a_warning() -> None:
    done = subprocess.run(["haproxy", "-c", "-f", CONFIG], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr + done.stdout


def test_its_times_leave_the_services_own_answers_to_the_service() -> None:
    assert seconds("timeout server") > SETTINGS.max_timeout_s
    assert seconds("timeout client") >= seconds("timeout server")
    assert seconds("hard-stop-after") >= seconds("timeout server")
    read_s = SETTINGS.head_timeout_s + SETTINGS.body_timeout_s
    assert seconds("timeout http-request") >= read_s
    assert seconds("timeout http-keep-alive") <= SETTINGS.idle_timeout_s


def test_an_instance_that_ends_is_noticed_before_it_takes_no_more() -> None:
    rounds = number("fall")

    # Its last answer may have been the moment before; the answers to checks take no time.
    assert rounds * seconds("inter") < SETTINGS.drain_delay_s
    assert "http-check send meth GET uri /readyz\n" in TEXT


def test_one_instance_can_take_all_connections() -> None:
    front = TEXT.partition("\nfrontend front\n")[2]
    found = re.search(r"maxconn (\d+)", front)

    assert found is not None
    assert int(found[1]) < SETTINGS.max_connections
    assert not re.search(r"^ *server .*maxconn", TEXT, re.MULTILINE), "the service has the queue"


def test_a_planners_usual_request_fits_into_what_may_be_sent_again() -> None:
    """Digits as `json` writes them, 256 sequences of 16 steps."""
    assert len(KINDS["plan"].body) < number("tune.bufsize") < len(KINDS["long plan"].body)
    step = len("[0.12345678901234567, 0.12345678901234567, 0.12345678901234567], ")

    assert 256 * 16 * step < number("tune.bufsize")


def test_what_it_says_itself_has_the_services_form() -> None:
    status_of = {error.code: error.status for error in SERVICE_ERRORS}
    said = re.findall(r"status (\d+) content-type application/json string '(.*?)'", TEXT)
    codes = {status: json.loads(text)["error"]["code"] for status, text in said}

    assert set(codes) == {"400", "404", "408", "502", "503", "504"}
    assert codes.pop("502") == "unavailable"  # the service has no 502
    assert {status: status_of[code] for status, code in codes.items()} == {x: int(x) for x in codes}


def test_the_page_names_its_addresses_and_its_limit() -> None:
    addresses = re.findall(r"presetenv (\w+) (\S+)", TEXT)

    assert len(addresses) == 5
    for name, address in addresses:
        assert f"`{name}=" in PAGE
        assert f"`{address}`" in PAGE
    assert f"{number('tune.bufsize') // 1024} KiB with its head" in PAGE


class Backend:
    """Says that it is ready, and does one thing with all other requests.

    Args:
        act: Gets the connection of a request that has come.
    """

    def __init__(self, act: Callable[[socket.socket], None]) -> None:
        self._act = act
        self.is_ready = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.heads: list[list[bytes]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            try:
                while line := file.readline():
                    fields = list(iter(lambda: file.readline().strip().lower(), b""))
                    if b"/readyz" in line:
                        connection.sendall(reply("200 OK" if self.is_ready else "503 No", ""))
                        continue
                    lengths = [x.split()[1] for x in fields if x.startswith(b"content-length")]
                    file.read(int(lengths[0]) if lengths else 0)
                    self.heads.append(fields)
                    self._act(connection)
            except OSError:
                return

    def close(self) -> None:
        self._listener.close()


def reply(status: str, text: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


def end(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def reset(connection: socket.socket) -> None:
    """End as a process does that is killed with input that it has not read."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.detach()


def answer(status: str, text: str = "") -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(reply(status, text))


ACTS = {
    "503": answer("503 Unavailable", "not now"),
    "429": answer("429 Too Many", "not now"),
    "end": end,
}


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Callable[..., tuple[Proxy, Backend, Backend]]]:
    """Put HAProxy before two backends."""
    running: list[Any] = []

    def begin(*acts: Callable[[socket.socket], None]) -> tuple[Proxy, Backend, Backend]:
        a, b = map(Backend, acts)
        proxy = launch_proxy(tmp_path, a.address, b.address)
        running.extend((proxy.process, a, b))
        for name in "ab":
            proxy.wait_until(name, "UP")
        return proxy, a, b

    yield begin
    if running:
        process, a, b = running
        process.kill()
        process.wait()
        a.close()
        b.close()


def asked(proxy: Proxy, size: int, times: int = 4) -> list[tuple[int, bytes]]:
    """Return what comes of requests, each on a connection of its own."""
    answers = []
    for _ in range(times):
        connection = connected(proxy.url)
        connection.request("POST", "/rollout", b" " * size)
        response = connection.getresponse()
        answers.append((response.status, response.read()))
        connection.close()
    return answers


@pytest.mark.parametrize("act", ["503", "end"])
def test_what_one_did_not_answer_the_other_one_answers_if_it_fits(
    behind: Callable[..., tuple[Proxy, Backend, Backend]], act: str
) -> None:
    proxy, bad, _ = behind(ACTS[act], answer("200 OK", "answer"))

    fits, fits_not = asked(proxy, 500_000), asked(proxy, 600_000)

    assert fits == [(200, b"answer")] * 4
    assert len(bad.heads) >= 2
    assert {status for status, _ in fits_not} == {200, 503 if act == "503" else 502}
    assert all(text == b"not now" or b'"unavailable"' in text for status, text in fits_not
               if status != 200)  # fmt: skip


def test_a_refusal_for_lack_of_room_is_the_services_own_and_not_sent_again(
    behind: Callable[..., tuple[Proxy, Backend, Backend]],
) -> None:
    proxy, a, b = behind(ACTS["429"], ACTS["429"])

    assert asked(proxy, 10) == [(429, b"not now")] * 4
    assert len(a.heads) + len(b.heads) == 4


def test_headers_pass_and_the_caller_is_the_last_one_named(
    behind: Callable[..., tuple[Proxy, Backend, Backend]],
) -> None:
    proxy, a, b = behind(answer("200 OK"), answer("200 OK"))
    named = {"X-Forwarded-For": "203.0.113.7", "X-Request-Id": "mine"}
    httpx.post(f"{proxy.url}/rollout", headers={**named, "X-Request-Timeout-Seconds": "0.25"})

    [fields] = a.heads + b.heads

    assert {b"x-request-id: mine", b"x-request-timeout-seconds: 0.25"} <= set(fields)
    told = [field for field in fields if field.startswith(b"x-forwarded-for")]
    assert told == [b"x-forwarded-for: 203.0.113.7", b"x-forwarded-for: 127.0.0.1"]


def test_a_caller_that_leaves_is_gone_for_the_instance_too(
    behind: Callable[..., tuple[Proxy, Backend, Backend]],
) -> None:
    left, came = threading.Event(), threading.Event()

    def wait(connection: socket.socket) -> None:
        came.set()
        connection.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            connection.recv(1)
        left.set()
        raise ConnectionError

    proxy, _, _ = behind(wait, wait)
    connection = connected(proxy.url)
    connection.request("POST", "/rollout", b"{}")
    assert came.wait(10)
    assert not left.is_set()
    connection.close()

    assert left.wait(10)


def test_the_instances_metrics_are_not_to_be_had_through_it_but_its_own_are(
    behind: Callable[..., tuple[Proxy, Backend, Backend]],
) -> None:
    proxy, a, b = behind(answer("200 OK"), answer("200 OK"))

    refused = httpx.get(f"{proxy.url}/metrics")
    own = httpx.get(f"{proxy.statistics}/metrics").text

    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
    assert a.heads == b.heads == []
    assert 'haproxy_server_status{proxy="world-model",server="a",state="UP"} 1' in own
    assert httpx.get(f"{proxy.url}/model").status_code == 200


def test_the_pages_command_tells_who_is_up(
    behind: Callable[..., tuple[Proxy, Backend, Backend]],
) -> None:
    proxy, a, _ = behind(answer("200 OK"), answer("200 OK"))
    [command] = re.findall(r"until (curl .*?); do", PAGE)
    command = command.replace("http://127.0.0.1:8405", proxy.statistics)

    def status(instance: str) -> int:
        return subprocess.run(["bash", "-c", f"instance={instance}; {command}"]).returncode

    assert status("a") == status("b") == 0
    a.is_ready = False
    proxy.wait_until("a", "DOWN")
    assert (status("a"), status("b")) == (1, 0)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, haproxy: None) -> Played:
    seen = play(tmp_path_factory.mktemp("rolling"), 2.0)
    for name, phase in seen.phases.items():
        p50, p99 = (1e3 * percentile(phase.latencies_s, share) for share in (0.5, 0.99))
        print(f"{name}: {phase.asked.total()} requests, checks p50 {p50:.2f}, p99 {p99:.2f} ms")
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_no_request_fails_through_upgrades_and_a_death(played: Played, phase: str) -> None:
    seen = played.phases[phase]

    assert seen.failed() == []
    assert {kind for kind, _, _ in seen.asked} >= {"check", "plan"}


@pytest.mark.slow
def test_every_answer_is_one_models_to_the_bit(played: Played) -> None:
    of = {phase: seen.texts() for phase, seen in played.phases.items()}

    assert played.old.isdisjoint(played.new)
    assert all(b'"model_version"' in text for _, text in played.old | played.new)
    assert of["undisturbed"] | of["service upgraded"] <= played.old
    assert of["model upgraded"] <= played.old | played.new
    assert of["model upgraded"] & played.new
    assert of["instance killed"] <= played.new


@pytest.mark.slow
def test_instances_that_end_finish_and_what_a_dead_one_left_is_sent_again(played: Played) -> None:
    served = {name: played.statistics["world-model", name] for name in "ab"}

    assert played.exits == [0] * 4
    assert all(int(row["hrsp_2xx"]) > 0 for row in served.values())
    assert int(played.statistics["world-model", "BACKEND"]["wredis"]) > 0
