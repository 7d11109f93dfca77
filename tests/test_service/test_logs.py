from __future__ import annotations

import json
import logging

import pytest
import structlog

from service.logs import configure_logging


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


def test_console_lines_are_for_eyes(capsys: pytest.CaptureFixture[str]) -> None:
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
