from __future__ import annotations

import io
import json
import logging
import sys
import threading

import pytest
import structlog

from service.telemetry.logs import configure_logging


def test_json_lines_hold_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")

    structlog.get_logger().warning("request failed", code="overloaded", request_id="r1")
    logging.getLogger("elsewhere").error("foreign")
    structlog.get_logger().debug("too fine")

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["request failed", "foreign"]
    assert lines[0]["code"] == "overloaded"
    assert {line["level"] for line in lines} == {"warning", "error"}
    assert all(line["timestamp"].endswith("Z") for line in lines)


def test_console_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("console", "warning")

    structlog.get_logger().info("not shown")
    try:
        raise ValueError("a cause")
    except ValueError as exc:
        structlog.get_logger().error("shown", exc_info=exc)

    out = capsys.readouterr().out
    assert "not shown" not in out
    assert "shown" in out
    assert "ValueError: a cause" in out


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_exceptions_are_shown_without_local_variables(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    """Among them are whole headers and bodies."""
    configure_logging(log_format, "warning")

    def fail(body: str) -> None:
        local = f"{body}, too"
        raise ValueError(f"{len(local)} characters")

    try:
        fail(" ".join(["a", "whole", "body"]))
    except ValueError as exc:
        structlog.get_logger().error("ours", exc_info=exc)
        logging.getLogger("theirs").exception("theirs")

    out = capsys.readouterr().out
    assert out.count("17 characters") == 2
    assert "in fail" in out or '"name": "fail"' in out
    assert "whole body" not in out
    assert "locals" not in out.replace('"locals": null', "")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_text_that_the_stream_cannot_write_is_escaped(
    monkeypatch: pytest.MonkeyPatch, log_format: str
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    configure_logging(log_format, "warning")

    structlog.get_logger().error("path", path="/ä\ud800", **{"ü": 1})

    line = written.getvalue()
    assert b"path" in line
    assert b"\\" in line
    assert line.endswith(b"\n")


def test_a_line_that_cannot_be_made_is_named_and_no_other_is_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("json", "warning")

    logging.getLogger("elsewhere").error("%d", "sesame")
    logging.getLogger("elsewhere").error("next")

    out, err = capsys.readouterr()
    assert err == "A line of the logger elsewhere was not written: TypeError\n"
    assert json.loads(out)["event"] == "next"


def test_what_nobody_catches_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "error")

    def crash() -> None:
        raise RuntimeError("a fault of ours")

    thread = threading.Thread(target=crash, name="worker")
    thread.start()
    thread.join()
    try:
        crash()
    except RuntimeError as exc:
        sys.excepthook(type(exc), exc, exc.__traceback__)

    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("thread crashed", "error"),
        ("crashed", "critical"),
    ]
    assert lines[0]["thread"] == "worker"
    assert all(line["exception"][0]["exc_value"] == "a fault of ours" for line in lines)
    assert err == ""


OBEYED = (
    "\x1b[2J \x07 \x00 \x7f \x85 \x9b31m \r\n\t \xa0 "
    "\u2028 \u2029 \u202e \u2066 \u200b \ufeff \U000e0041"
)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_line_holds_characters_that_a_terminal_obeys(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure_logging(log_format, "warning")
    log = structlog.get_logger()

    log.error("request failed", path=f"/{OBEYED}")
    log.error(f"event {OBEYED}", **{f"key {OBEYED}": "value"})
    log.error("nested", details=[{"field": OBEYED, OBEYED: (OBEYED,)}], raw=OBEYED.encode())
    logging.getLogger("theirs").error("foreign %s", OBEYED)

    lines = capsys.readouterr().out.removesuffix("\n").split("\n")
    assert len(lines) == 4
    for line in lines:
        assert line.isprintable()
        assert "\\x1b[2J" in line


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_exceptions_keep_their_line_breaks_only(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure_logging(log_format, "warning")

    try:
        raise ValueError(f"one\ntwo {OBEYED}")
    except ValueError as exc:
        structlog.get_logger().error("ours", exc_info=exc)

    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))
    assert "\\x1b[2J" in out
    if log_format == "json":
        assert json.loads(out)["exception"][0]["exc_value"].startswith("one\ntwo ")
    else:
        assert "ValueError: one\ntwo " in out
