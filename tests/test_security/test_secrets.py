"""No secret is ever shown: not in errors, not in logs, whatever breaks."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import pytest
import structlog
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.util.re import parse_env_headers
from pydantic import SecretStr, ValidationError

from service.app import create_app
from service.cli import main
from service.errors import StartupError
from service.server import serve
from service.settings import PREFIX, Settings, explain_settings_error
from service.telemetry.logs import STRUCK_OUT, Redaction, configure_logging
from service.telemetry.metrics import Registry
from tests.fakes.engine import ACTIONS, STATE, FakeEngine, serving

SECRET = "s3same-0pen.me"
OLD_SECRET = "y3sterdays-K3Y"
SECRETS = [
    name
    for name, field in Settings.model_fields.items()
    if SecretStr in (field.annotation, *get_args(field.annotation))
]
each_secret = pytest.mark.parametrize("name", SECRETS)
each_format = pytest.mark.parametrize("log_format", ["json", "console"])
BAD_VALUES = [f"{SECRET} {SECRET}", f"{SECRET}\n{SECRET}", f"{SECRET},{SECRET}ä", SECRET * 400]


def shows(text: str) -> bool:
    return any(part in text.lower() for part in ("s3same", "0pen.me", "y3sterday"))


def test_there_is_a_secret_setting() -> None:
    """Or the tests below would check nothing."""
    assert "api_keys" in SECRETS
    named_so = [name for name in Settings.model_fields if "key" in name or "secret" in name]
    assert set(named_so) <= set(SECRETS)


@each_secret
@pytest.mark.parametrize("value", [*BAD_VALUES, [SECRET], SECRET.encode() + b"\xff", {SECRET: 1}])
def test_a_bad_secret_is_in_no_text_of_its_error(name: str, value: Any) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(ValidationError) as caught:
        Settings(**given)

    sentence = explain_settings_error(caught.value)
    assert f"{PREFIX}{name.upper()}" in sentence
    assert not shows(sentence)
    assert not shows(str(caught.value) + repr(caught.value))


@each_secret
def test_a_good_secret_is_in_no_text_of_its_settings(name: str) -> None:
    given: dict[str, Any] = {name: SECRET}
    settings = Settings(**given)

    app = create_app(settings, FakeEngine(), Registry())

    for text in (repr(settings), str(settings), settings.model_dump_json(), f"{vars(settings)}"):
        assert not shows(text)
    assert not shows(repr(vars(app)))


@each_secret
@pytest.mark.parametrize("other", [{"default_timeout_s": 100.0}, {"port": "x"}, {"prot": 1}])
def test_a_good_secret_is_in_no_error_of_another_setting(name: str, other: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**{name: SECRET, **other})

    assert not shows(explain_settings_error(caught.value) + str(caught.value))


def invoke(*arguments: str, **variables: str) -> str:
    result = CliRunner().invoke(main, arguments, env=variables)
    assert result.exit_code != 0
    return result.output


@each_secret
@pytest.mark.parametrize("command", ["serve", "prepare"])
def test_no_refused_command_shows_a_secret(name: str, command: str) -> None:
    variable, option = f"{PREFIX}{name.upper()}", f"--{name.replace('_', '-')}"
    outputs = [
        *(invoke(command, **{variable: value}) for value in BAD_VALUES),
        *(invoke("serve", option, value) for value in BAD_VALUES),
        *(invoke(command, **{f"{variable}{end}": SECRET}) for end in ("S", "_", "X", " ")),
        invoke(command, **{variable[:-1]: SECRET}),
        invoke(command, **{variable: SECRET, variable.lower(): SECRET}),
        invoke(command, **{variable: SECRET, f"{PREFIX}PORT": "x"}),
        invoke(command, SECRET),
        invoke("serve", option, "key,", SECRET),
        invoke("serve", option[:-1], SECRET),
        invoke("serve", f"{option[:-1]}={SECRET}"),
        invoke(f"{variable}={SECRET}", command),
        invoke(SECRET),
        invoke(f"{option}={SECRET}", command),
    ]

    for output in outputs:
        assert "Error: " in output
        assert not shows(output), output


def the_exception_of(secret: str) -> Exception:
    """Return an exception with a secret in its message, its cause and its frames' locals."""

    def deep(authorization: str) -> None:
        headers = {b"authorization": authorization.encode(), b"x": [authorization]}
        try:
            raise ValueError(f"bad header {headers}", authorization)
        except ValueError as exc:
            exc.add_note(f"given: {authorization!r}")
            raise RuntimeError(authorization, headers) from exc

    try:
        deep(f"Bearer {secret}")
    except RuntimeError as exc:
        return exc
    raise AssertionError


def logged_by_us() -> None:
    log = structlog.get_logger()
    log.error(f"event {SECRET}", **{SECRET: 1})
    log.error("nested", headers=[(b"Authorization", f"Bearer {SECRET}".encode())])
    log.error("object", request=Settings, policy={"keys": (SECRET,), 1: {SECRET: {SECRET}}})
    log.error("exception", exc_info=the_exception_of(SECRET))


def logged_by_others() -> None:
    log = logging.getLogger("uvicorn.error")
    log.error("Exception in ASGI application\n", exc_info=the_exception_of(SECRET))
    log.error("%s of %r", "key", {"authorization": f"Bearer {SECRET}"}, stack_info=True)
    logging.getLogger("asyncio").error("bytes %r", f"Authorization: Bearer {SECRET}\r\n".encode())


def logged_wrongly() -> None:
    """logging's own report of a line that it cannot write shows the arguments."""
    logging.getLogger("elsewhere").error("%d keys of %s", SECRET)


def logged_by_the_event_loop() -> None:
    def callback(headers: dict[str, str]) -> None:
        raise RuntimeError(f"with {headers}")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(callback, {"authorization": f"Bearer {SECRET}"})
        await asyncio.sleep(0)

    asyncio.run(run())


def crashed() -> None:
    error = the_exception_of(SECRET)
    sys.excepthook(type(error), error, error.__traceback__)


def crashed_in_a_thread() -> None:
    def work() -> None:
        raise the_exception_of(SECRET)

    thread = threading.Thread(target=work, name=SECRET)
    thread.start()
    thread.join()


def crashed_where_none_can_catch() -> None:
    class Held:
        def __del__(self) -> None:
            raise the_exception_of(SECRET)

    Held()


TROUBLES = [
    logged_by_us,
    logged_by_others,
    logged_wrongly,
    logged_by_the_event_loop,
    crashed,
    crashed_in_a_thread,
    crashed_where_none_can_catch,
]


@each_secret
@each_format
@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
def test_no_log_line_shows_a_secret(
    capsys: pytest.CaptureFixture[str],
    name: str,
    log_format: str,
    trouble: Callable[[], None],
) -> None:
    given: dict[str, Any] = {name: f"{SECRET},another-key"}
    configure_logging(log_format, "debug", Settings(**given).secrets())

    trouble()

    out, err = capsys.readouterr()
    assert out or err
    assert not shows(out + err), out + err
    if log_format == "json":
        assert all(json.loads(line)["level"] for line in out.splitlines())


@each_format
def test_keys_that_are_not_ours_are_struck_out_too(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    """A caller's typing error, or a key that was served until yesterday."""
    configure_logging(log_format, "debug", (SECRET,))

    structlog.get_logger().error("exception", exc_info=the_exception_of(OLD_SECRET))
    structlog.get_logger().error("basic", headers={"Authorization": f"Basic {OLD_SECRET}"})
    structlog.get_logger().error("pair", headers=[[b"authorization", OLD_SECRET]])
    structlog.get_logger().error(f"refused: http://user:{OLD_SECRET}@collector:4318/v1/traces")
    logging.getLogger("urllib3").error("Authorization: Basic %s", OLD_SECRET)

    out = capsys.readouterr().out
    assert not shows(out), out
    assert "collector:4318" in out
    assert out.count("***") >= 5


@each_format
def test_a_failing_request_shows_no_header(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    engine: FakeEngine,
    log_format: str,
) -> None:
    """Every header and the body are in the locals of whatever fails while they are read."""

    async def ask() -> list[int]:
        async with serving(engine, api_keys=SECRET) as (app, client):
            wrong = {"Authorization": f"Bearer {OLD_SECRET}"}
            right = {"Authorization": f"Bearer {SECRET}"}
            body = {"state": STATE, "actions": ACTIONS}
            statuses = [
                (await client.post("/rollout", json=body, headers=headers)).status_code
                for headers in (wrong, right)
            ]

            def break_down(*given: Any, **_: Any) -> None:
                raise RuntimeError(f"with {given} and Bearer {SECRET}")

            monkeypatch.setattr(app.scheduler, "enqueue", break_down)
            answer = await client.post("/rollout", json=body, headers=right)
            assert not shows(answer.text)
            return [*statuses, answer.status_code]

    configure_logging(log_format, "debug", Settings(api_keys=SecretStr(SECRET)).secrets())
    assert asyncio.run(ask()) == [401, 200, 500]

    out, err = capsys.readouterr()
    assert "RuntimeError" in out
    assert not shows(out + err), out + err


@pytest.mark.parametrize("key", ["true", "null", "1234", "info", "event", '":{}', "a\\b'c"])
def test_a_key_that_is_a_word_of_json_leaves_json_whole(
    capsys: pytest.CaptureFixture[str], key: str
) -> None:
    configure_logging("json", "debug", (key,))

    structlog.get_logger().info("started", rows=1234, is_ready=True, nothing=None, x=float("nan"))
    structlog.get_logger().error("failed", exc_info=RuntimeError(f"with {key} in it"))

    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["rows"], first["is_ready"], first["nothing"]) == (1234, True, None)
    assert "with *** in it" in json.dumps(second)


WRITTEN: list[Callable[[str], str]] = [
    str,
    repr,
    json.dumps,
    lambda x: repr(x.encode()),
    lambda x: repr([x]),
    lambda x: json.dumps([repr(x)]),
]


@given(
    secret=st.text(st.characters(codec="ascii", exclude_categories=["Cc", "Zs"],
                                 exclude_characters="*,"), min_size=4, max_size=12),
    around=st.tuples(st.text(max_size=8), st.text(max_size=8)),
    write=st.sampled_from(WRITTEN),
)  # fmt: skip
def test_a_secret_is_struck_out_of_any_text(
    secret: str, around: tuple[str, str], write: Callable[[str], str]
) -> None:
    shown = Redaction([secret]).text(f"{around[0]}{write(secret)}{around[1]}")

    assert secret.lower() not in shown.lower()
    assert write(secret).strip("\"'[]b") not in shown


def test_other_words_stay() -> None:
    text = "bearers of authorization, at http://127.0.0.1:8000/a@b, has read 10 headers"

    assert Redaction([SECRET, "of", ""]).text(text) == text


def test_headers_for_a_collector_are_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry logs a header that it cannot read."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"api-key={SECRET},x=a%20{OLD_SECRET}")

    redaction = Redaction(Settings().secrets())

    for text in (SECRET, f"a {OLD_SECRET}", os.environ["OTEL_EXPORTER_OTLP_HEADERS"]):
        assert not shows(redaction.text(f"Header format invalid! {text}"))


@pytest.mark.parametrize(
    "headers",
    [
        SECRET,
        f"api-key=some-value,{SECRET}",
        f" {SECRET} , api-key=some-value",
        f"{SECRET}=api-key",
        f"api-key=some-value={SECRET}=,",
        f"a=b,api key={SECRET}",
        f"api-key={SECRET};x",
        f"a=b,%20{SECRET}",
    ],
    ids=str,
)
def test_no_part_of_headers_for_a_collector_is_logged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], headers: str
) -> None:
    """By OpenTelemetry's own reader, which warns of what it cannot read."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", headers)
    configure_logging("console", "warning", Settings().secrets())

    read = parse_env_headers(headers, liberal=True)
    logging.getLogger("elsewhere").warning("%s", read)
    for piece in re.split("[,=]", headers):
        logging.getLogger("elsewhere").warning("%s, %s", piece.strip(), unquote(piece))

    out = capsys.readouterr().out
    assert STRUCK_OUT in out
    assert not shows(out)


def test_a_short_header_without_a_name_is_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "flag=true,k3y!")

    assert Settings().secrets() == ("flag=true,k3y!", "flag=true", "k3y!")


@each_format
def test_a_start_that_crashes_shows_no_secret(log_format: str) -> None:
    code = """
import service.server
from service.cli import main

def break_down(settings):
    keys = settings.keys()
    raise RuntimeError(f"with {keys}")

service.server.loaded_engine = break_down
main(["serve", "--port", "0"])
"""

    variables = {
        "WORLD_MODEL_API_KEYS": f"{SECRET},{OLD_SECRET}",
        "WORLD_MODEL_LOG_FORMAT": log_format,
    }

    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    shown = ended.stdout + ended.stderr
    assert ended.returncode == 1
    assert "crashed" in shown
    assert "RuntimeError" in shown
    assert "Traceback (most recent call last)" not in shown or log_format == "console"
    assert not shows(shown), shown


def test_a_refused_start_shows_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(
        host="127.0.0.1", port=0, api_keys=SecretStr(SECRET), checkpoint=tmp_path / "absent"
    )
    with pytest.raises(StartupError) as refused:
        serve(settings)

    assert not shows(str(refused.value) + capsys.readouterr().out)
