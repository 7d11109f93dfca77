"""The server in process: what stops a start, and a whole life from port to exit code."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import structlog
import torch
from pydantic import ValidationError

from models.checkpoint import load_checkpoint, save_checkpoint
from models.conformal import Guarantee
from service import __version__
from service.engine import Engine
from service.engine.parts import Parts
from service.errors import StartupError
from service.interface import Array, Pieces
from service.scheduling.explanations import Explanations, Question
from service.server import DEVICE_LOST_CODE, _allow_files, loaded_engine, serve
from service.settings import Settings, explain_settings_error
from service.telemetry.start_report import log_limits
from tests.fakes.engine import fake_info
from tests.test_service.test_engine.test_engine import checkpoint
from world_model_client import Client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server") / "checkpoint"
    save_checkpoint(checkpoint(), folder)
    return folder


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number = probe.getsockname()[1]
    threads = torch.get_num_threads()
    yield number
    torch.set_num_threads(threads)


def test_a_taken_port_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"127.0.0.1:{number}: Address already in use"):
            serve(Settings(port=number, checkpoint=tmp_path / "absent"))


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(StartupError, match=r"cannot listen on 203\.0\.113\.7"):
        serve(Settings(host="203.0.113.7", port=0))


@pytest.mark.parametrize(
    ("host", "shown"),
    [("2001:db8::1", "[2001:db8::1]"), ("a..b", "a..b"), ("a" * 64, "a" * 64)],
    ids=["IPv6", "empty label", "long label"],
)
def test_an_address_that_cannot_be_listened_on_is_shown_as_in_a_url(host: str, shown: str) -> None:
    with pytest.raises(StartupError) as refused:
        serve(Settings(host=host, port=9))

    assert str(refused.value).startswith(f"cannot listen on {shown}:9: ")


OPEN = "open to all who reach the port"
SHORT = "API keys are easily guessed"


@pytest.mark.parametrize(
    ("host", "keys", "warnings"),
    [
        ("127.0.0.1", None, []),
        ("localhost", None, []),
        ("127.8.8.8", None, []),
        ("0.0.0.0", None, [OPEN]),
        ("0", None, [OPEN]),
        ("0.0.0.0", "a-key-of-more-than-16", []),
        ("0.0.0.0", "sesame,a-key-of-more-than-16", [SHORT]),
        ("127.0.0.1", "sesame", [SHORT]),
    ],
)
def test_a_start_that_lets_more_in_than_meant_warns(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    host: str,
    keys: str | None,
    warnings: list[str],
) -> None:
    given: dict[str, Any] = {"host": host, "api_keys": keys, "log_format": "json"}
    with pytest.raises(StartupError, match="absent"):
        serve(Settings(port=0, checkpoint=tmp_path / "absent", **given))

    logged = capsys.readouterr().out
    lines = [orjson.loads(line) for line in logged.splitlines()]
    assert [line["event"] for line in lines] == warnings
    assert all(line["level"] == "warning" and line["reason"] for line in lines)
    assert "sesame" not in logged


@pytest.mark.parametrize(
    ("host", "warns"),
    [("::1", False), ("::", True), ("::ffff:127.0.0.1", False), ("::ffff:0.0.0.0", True)],
)
def test_addresses_of_ipv6_are_judged_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str, warns: bool
) -> None:
    with pytest.raises(StartupError) as refused:
        serve(Settings(host=host, port=0, checkpoint=tmp_path / "absent"))

    if "cannot listen" in str(refused.value):
        pytest.skip("this machine has no IPv6")
    assert (OPEN in capsys.readouterr().out) == warns


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"cannot load the checkpoint: .*absent does not exist"):
        serve(Settings(port=0, checkpoint=tmp_path / "absent"))


def test_too_many_members_are_named(folder: Path) -> None:
    with pytest.raises(StartupError, match="cannot serve 9 members"):
        serve(Settings(port=0, checkpoint=folder, members=9))


def test_a_checkpoint_of_another_spec_than_expected_is_refused_with_both_named(
    folder: Path,
) -> None:
    found = load_checkpoint(folder).spec.signature
    dims, _, digest = found.partition("-")
    other = f"{dims}-{'0' * 7}{'1' if digest != '00000001' else '2'}"
    for expected in ("34x4", "34x3-1a2b3c4d", other):
        with pytest.raises(StartupError) as refused:
            loaded_engine(Settings(checkpoint=folder, expect_spec=expected))

        sentence = str(refused.value)
        assert f"has the spec {found} (" in sentence
        assert f"WORLD_MODEL_EXPECT_SPEC is {expected}: " in sentence
    for fitting in (None, dims, found):
        loaded_engine(Settings(checkpoint=folder, expect_spec=fitting))


@pytest.mark.parametrize("value", ["", "34", "x3", "0x3", "34x", "34x3-", "34x3-1A2B3C4D", "a x b"])
def test_what_is_no_spec_cannot_be_expected(value: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(expect_spec=value)

    assert "setting WORLD_MODEL_EXPECT_SPEC" in explain_settings_error(refused.value)


GIVEN = Guarantee(alpha=0.01, lead_s=0.2, episodes=120, threshold=0.6)
COUNTED = {"miss_rate": 0.01, "episodes": 120, "episodes_needed": 99}


@pytest.mark.parametrize(
    ("limits", "guarantee", "expected"),
    [
        ({}, GIVEN, ("info", "the crash threshold keeps its guarantee")),
        ({}, None, ("warning", "the crash threshold guarantees nothing")),
        (
            {},
            replace(GIVEN, threshold=None),
            ("warning", "the crash threshold guarantees nothing"),
        ),
        (
            {"crash_threshold": None},
            GIVEN,
            ("warning", "not calibrated: every safety check answers unknown"),
        ),
    ],
    ids=["guaranteed", "set by hand", "asked for", "uncalibrated"],
)
def test_a_start_says_what_the_threshold_guarantees(
    limits: dict[str, Any], guarantee: Guarantee | None, expected: tuple[str, str]
) -> None:
    info = replace(fake_info(), guarantee=guarantee)
    info = replace(info, limits=replace(info.limits, **limits))

    with structlog.testing.capture_logs() as lines:
        log_limits(info)

    (line,) = lines
    assert (line["log_level"], line["event"]) == expected
    assert line["crash_threshold"] == info.limits.crash_threshold
    if guarantee is not None:
        assert {name: line[name] for name in COUNTED} == COUNTED


LIMIT = {"uncertainty_limit": None}


@pytest.mark.parametrize(
    ("change", "known", "reason"),
    [
        (LIMIT, {}, "the uncertainty limit was never calibrated"),
        (LIMIT, {"members": 1}, "one member cannot disagree"),
        (
            LIMIT,
            {"refused": {"uncertainty_limit": 0.9}},
            "too few calibration windows support the uncertainty limit",
        ),
        ({"horizon": 0}, {}, "no horizon was evaluated"),
        (
            LIMIT | {"horizon": 0},
            {"members": 1},
            "one member cannot disagree, and no horizon was evaluated",
        ),
    ],
    ids=["uncalibrated", "one member", "refused", "no horizon", "both"],
)
def test_a_start_warns_if_no_verdict_will_be_safe(
    change: dict[str, Any], known: dict[str, Any], reason: str
) -> None:
    info = replace(fake_info(), **known)

    with structlog.testing.capture_logs() as lines:
        log_limits(replace(info, limits=replace(info.limits, **change)))

    assert lines[-1]["log_level"] == "warning"
    assert lines[-1]["event"] == "no verdict will be safe"
    assert lines[-1]["reason"] == reason


def test_a_start_says_that_thresholds_hold_for_more_members_than_are_served() -> None:
    info = replace(fake_info(), members=2, held_members=5, refused=LIMITS_HELD)
    limits = replace(info.limits, crash_threshold=None, uncertainty_limit=None)

    with structlog.testing.capture_logs() as lines:
        log_limits(replace(info, limits=limits))

    assert [line["reason"] for line in lines] == [
        "it holds for all 5 members, and 2 are served",
        "limits hold for all 5 members",
    ]
    assert [line["log_level"] for line in lines] == ["warning"] * 2


LIMITS_HELD = {"crash_threshold": 0.3, "uncertainty_limit": 0.9}


@pytest.mark.parametrize(
    ("guarantee", "reason"),
    [
        (None, "the checkpoint notes no guarantee for it"),
        (
            replace(GIVEN, threshold=None),
            "its episodes are too few for a guarantee, or none was",
        ),
        (replace(GIVEN, threshold=0.2), "it is above 0.2, the highest one that keeps"),
    ],
    ids=["nothing noted", "no guarantee", "above the guarantee"],
)
def test_a_start_says_that_a_threshold_is_refused(guarantee: Guarantee | None, reason: str) -> None:
    info = replace(fake_info(), guarantee=guarantee, refused={"crash_threshold": 0.3})
    info = replace(info, limits=replace(info.limits, crash_threshold=None))

    with structlog.testing.capture_logs() as lines:
        log_limits(info)

    (line,) = lines
    assert line["event"] == "the crash threshold is refused: every safety check answers unknown"
    assert line["reason"].startswith(reason)
    assert line["refused_threshold"] == 0.3


@pytest.mark.parametrize(
    ("limits", "connections", "allowed", "is_logged"),
    [
        ((1024, 4096), 100, None, False),
        ((1024, 4096), 2000, 2128, False),
        ((1024, 2000), 2000, 2000, True),
        ((1024, resource.RLIM_INFINITY), 5000, 5128, False),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 5000, None, False),
    ],
    ids=["enough", "raised", "raised as far as may be", "unlimited above", "unlimited"],
)
def test_as_many_files_may_be_open_as_connections(
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    connections: int,
    allowed: int | None,
    is_logged: bool,
) -> None:
    made: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: made.append((kind, pair)))

    with structlog.testing.capture_logs() as logs:
        _allow_files(connections)

    expected = [] if allowed is None else [(resource.RLIMIT_NOFILE, (allowed, limits[1]))]
    assert made == expected
    assert bool(logs) is is_logged


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def wait_ready(port: int, host: str = "127.0.0.1") -> Client:
    client = Client(f"http://{host}:{port}")
    deadline = time.monotonic() + 20
    while not client.ready():
        assert time.monotonic() < deadline, "the service did not become ready"
        time.sleep(0.02)
    return client


def serve_for(visitor: Callable[[], None], folder: Path, port: int, **given: Any) -> int:
    """Serve until the visitor, on another thread, has ended it; return the exit code."""
    defaults: dict[str, Any] = {
        "threads": 1,
        "log_format": "json",
        "drain_delay_s": 0.0,
        "compile": False,
    }
    thread = in_thread(visitor)
    code = serve(Settings(port=port, checkpoint=folder, device="cpu", **{**defaults, **given}))
    thread.join(20)
    assert not thread.is_alive()
    return code


STATE, ACTIONS = [0.0] * 4, [[0.1, 0.2]] * 3
BODY = {"state": STATE, "actions": ACTIONS}


def test_a_whole_life_ends_with_zero(
    folder: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM: not ready at once, still served during the drain delay, then an exit code of 0."""
    seen: dict[str, Any] = {}
    url = f"http://127.0.0.1:{port}"

    def visitor() -> None:
        with wait_ready(port) as client:
            seen["first"] = client.rollout(STATE, ACTIONS)
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 5
            while client.ready() and time.monotonic() < deadline:
                time.sleep(0.01)
            seen["ready"] = client.ready()
            answers = [httpx.post(f"{url}/rollout", json=BODY), httpx.get(f"{url}/model")]
            seen["connection"] = {answer.headers.get("connection") for answer in answers}
            seen["second"] = client.rollout(STATE, ACTIONS)
            os.kill(os.getpid(), signal.SIGTERM)

    code = serve_for(visitor, folder, port, drain_delay_s=30.0)

    assert code == 0
    assert (seen["ready"], seen["second"]) == (False, seen["first"])
    assert seen["connection"] == {"close"}
    lines = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    ours = ("started", "the crash threshold guarantees nothing", "stopping", "stopped")
    assert [line["event"] for line in lines if line["event"] in ours] == list(ours)
    (started,) = (line for line in lines if line["event"] == "started")
    assert started["service_version"] == __version__


@pytest.mark.parametrize(
    ("proxies", "peer"),
    [(None, "203.0.113.7"), ("10.0.0.0/8", "127.0.0.1"), ("10.0.0.0/8,127.0.0.1", "203.0.113.7")],
)
def test_the_environment_names_the_proxies_that_are_believed(
    folder: Path,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    proxies: str | None,
    peer: str,
) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    if proxies is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", proxies)

    def visitor() -> None:
        wait_ready(port).close()
        forwarded = {"X-Forwarded-For": "203.0.113.7"}
        httpx.post(f"http://127.0.0.1:{port}/rollout", json={}, headers=forwarded)
        os.kill(os.getpid(), signal.SIGTERM)

    serve_for(visitor, folder, port)

    lines = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    failed = [line for line in lines if line["event"] == "request failed"]
    assert [line["peer"] for line in failed if line["path"] == "/rollout"] == [peer]


def test_a_lost_device_ends_the_process_with_a_code_of_its_own(
    folder: Path, port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only another process can use it; until the end, callers get answers."""
    statuses: list[int] = []
    works = Engine.canary
    is_lost = threading.Event()

    def canary(engine: Engine) -> None:
        if is_lost.is_set():
            engine.is_lost = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        works(engine)

    def visitor() -> None:
        with wait_ready(port), contextlib.suppress(httpx.TransportError):
            is_lost.set()
            while True:
                answer = httpx.post(f"http://127.0.0.1:{port}/rollout", json=BODY)
                statuses.append(answer.status_code)

    monkeypatch.setattr(Engine, "canary", canary)
    monkeypatch.setattr(Parts, "advance", broken_when(is_lost, Parts.advance))

    code = serve_for(visitor, folder, port, drain_delay_s=30.0)

    assert code == DEVICE_LOST_CODE
    assert set(statuses) <= {200, 500, 503}
    last = orjson.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["event"], last["reason"], last["exit_code"]) == ("stopped", "device lost", 75)


LOST_DEVICE = """
import os, sys
import torch
from service.cli import main
from service.engine import Engine
from service.engine.parts import Parts

class OnDevice:
    def __del__(self):
        os.abort()  # as PyTorch does

def lost(*_):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def start(engine):
    works(engine)
    engine._device = torch.device("cuda", 0)
    engine._backend.weights = OnDevice()
    torch.cuda.synchronize = Parts.advance = lost

works, Engine.start = Engine.start, start
torch.cuda.get_device_name = lambda device: "NVIDIA Fake"
main(["serve", "--compile", "false", "--port", sys.argv[1], "--checkpoint", sys.argv[2]])
"""


def test_the_command_ends_with_the_code_of_a_lost_device_and_not_by_a_signal(
    folder: Path, port: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOST_DEVICE, str(port), folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert done.returncode == DEVICE_LOST_CODE, done.stdout + done.stderr
    assert "device memory not given back" in done.stdout


def broken_when(is_broken: threading.Event, works: Callable[..., int]) -> Callable[..., int]:
    def advance(parts: Parts, *given: Any) -> int:
        if is_broken.is_set():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return works(parts, *given)

    return advance


def test_the_started_line_has_a_url_that_can_be_opened(
    folder: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """An IPv6 address stands in brackets, or its last part would be taken for the port."""
    try:
        with socket.create_server(("::1", port), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")

    def visitor() -> None:
        wait_ready(port, host="[::1]").close()
        os.kill(os.getpid(), signal.SIGTERM)

    serve_for(visitor, folder, port, host="::1")

    lines = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    started = next(line for line in lines if line["event"] == "started")
    assert started["url"] == f"http://[::1]:{port}"


def test_accepted_work_is_finished_or_answered_before_the_end(
    folder: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request outlasts the shutdown: it gets its 503, and the service still ends with 0."""
    gate, entered = threading.Event(), threading.Event()
    answers: list[httpx.Response] = []
    begin = Engine.begin

    def held(
        self: Engine, states: Array, actions: Array, part_rows: int, members: int | None = None
    ) -> Parts:
        if actions.shape[1] == 3:
            entered.set()
            gate.wait(20)
        return begin(self, states, actions, part_rows, members)

    monkeypatch.setattr(Engine, "begin", held)
    monkeypatch.setattr(Engine, "is_quick_to_call", False)

    def visitor() -> None:
        wait_ready(port).close()
        caller = in_thread(
            lambda: answers.append(httpx.post(f"http://127.0.0.1:{port}/rollout", json=BODY))
        )
        entered.wait(20)
        os.kill(os.getpid(), signal.SIGINT)
        caller.join()
        gate.set()

    code = serve_for(visitor, folder, port, log_level="error", shutdown_timeout_s=0.1)

    assert code == 0
    assert answers[0].status_code == 503


def test_attributions_that_wait_do_not_keep_the_service_alive(
    folder: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is being computed is finished; those behind it would take long."""
    gate, begun, asked = threading.Event(), threading.Event(), threading.Semaphore(0)
    answers: list[int] = []
    explain, ask_for = Engine.explain, Explanations.ask

    def held(self: Engine, *given: Any) -> Pieces:
        begun.set()
        while not gate.wait(0.001):
            yield
        return (yield from explain(self, *given))

    def noted(self: Explanations, *given: Any, **options: Any) -> Question:
        question = ask_for(self, *given, **options)
        asked.release()
        return question

    monkeypatch.setattr(Engine, "explain", held)
    monkeypatch.setattr(Explanations, "ask", noted)

    def ask() -> None:
        url, body = f"http://127.0.0.1:{port}/safety-check", {**BODY, "include": ["attribution"]}
        answers.append(httpx.post(url, json=body, timeout=20).status_code)

    def visitor() -> None:
        wait_ready(port).close()
        first = in_thread(ask)
        assert asked.acquire(timeout=20)
        others = [in_thread(ask) for _ in range(2)]
        assert all(asked.acquire(timeout=20) for _ in others)
        assert begun.wait(timeout=20)
        os.kill(os.getpid(), signal.SIGTERM)
        for other in others:
            other.join()
        assert answers == [503, 503]
        gate.set()
        first.join()

    code = serve_for(visitor, folder, port, log_level="error", default_timeout_s=20)

    assert (code, answers) == (0, [503, 503, 200])


def test_a_caller_that_goes_on_sending_does_not_keep_the_service_alive(
    folder: Path, port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody waits for the rest of a body when all that could be answered has been."""
    monkeypatch.setattr("service.server._LAST_RESORT_S", 0.1)
    rest: list[bytes] = []

    def visitor() -> None:
        wait_ready(port).close()
        with socket.create_connection(("127.0.0.1", port), timeout=20) as caller:
            caller.sendall(b"POST /rollout HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
            os.kill(os.getpid(), signal.SIGTERM)
            with contextlib.suppress(ConnectionResetError):
                rest.append(caller.recv(1))

    code = serve_for(visitor, folder, port, shutdown_timeout_s=0.1, body_timeout_s=60)

    assert code == 0
    assert rest in ([], [b""])
    lines = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [x["reason"] for x in lines if x["event"] == "connection cut"] == ["the service ends"]
    assert lines[-1]["event"] == "stopped"
