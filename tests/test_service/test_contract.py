"""What users bind to is what was saved: OpenAPI document, metrics, settings, command line.

A failure means that a client, a dashboard or a script may break. If the change is wanted, say so in
CHANGELOG.md and save the contract anew:

    python -m tests.test_service.test_contract

What depends on the machine is left out or replaced: versions, folders, the terminal's width.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from service import __version__
from service.cli import main
from service.settings import PREFIX, PRETRAINED, Settings
from tests.fakes.engine import FakeEngine, serving

FOLDER = Path(__file__).parent / "contract"
SAVE = "python -m tests.test_service.test_contract"
WIDE = 100_000
"""Columns of a terminal in which no help text is wrapped."""
GPU_BYTES = ("allocated", "reserved", "peak", "budget", "device_used", "device_total")


def without_folders(text: str) -> str:
    return text.replace(str(PRETRAINED), "models/pretrained")


async def asked(path: str) -> str:
    """Return the app's answer to a GET, with the engine of a machine that has a GPU."""
    engine = FakeEngine()
    engine.usage = dict.fromkeys(GPU_BYTES, 2**30)
    engine.busy = 0.5
    async with serving(engine) as (_, client):
        answer = await client.get(path)
    assert answer.status_code == 200
    return answer.text


async def openapi() -> dict[str, Any]:
    """Return the OpenAPI document, without the release's number."""
    document: dict[str, Any] = json.loads(await asked("/openapi.json"))
    del document["info"]["version"]
    return document


async def metrics() -> dict[str, Any]:
    """Return the type, help, labels with their values, and buckets of each metric.

    The release's number is replaced: it changes, and nothing breaks.
    """
    found: dict[str, Any] = {}
    for family in text_string_to_metric_families(await asked("/metrics")):
        values: dict[str, set[str]] = {}
        for sample in family.samples:
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add("" if value == __version__ else value)
        buckets = sorted(map(float, values.pop("le", ())))
        found[family.name] = {
            "type": family.type,
            "help": family.documentation,
            "labels": {label: sorted(values[label]) for label in sorted(values)},
            "buckets": [f"{bound:g}" for bound in buckets],
        }
    return found


async def settings() -> dict[str, Any]:
    """Return the type, default, bounds and help of each setting."""
    properties = Settings.model_json_schema()["properties"]
    found: dict[str, Any] = json.loads(without_folders(json.dumps(properties)))
    return {name: {k: v for k, v in one.items() if k != "title"} for name, one in found.items()}


async def commands() -> dict[str, Any]:
    """Return the lines that `--help` prints, of the command and of each subcommand."""
    return {
        " ".join(("world-model", *words)): help_of(*words)
        for words in ((), *((name,) for name in sorted(main.commands)))
    }


def help_of(*words: str) -> list[str]:
    result = CliRunner().invoke(
        main, [*words, "--help"], prog_name="world-model", terminal_width=WIDE
    )
    assert result.exit_code == 0, result.output
    lines = without_folders(result.output).splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


PARTS = {
    "openapi": openapi,
    "metrics": metrics,
    "settings": settings,
    "commands": commands,
}


def differences(saved: Any, now: Any, path: str) -> list[str]:
    """Return one line for each place in which two JSON values differ."""
    if isinstance(saved, dict) and isinstance(now, dict):
        lines = [f"{path}.{name}: gone" for name in saved if name not in now]
        lines += [f"{path}.{name}: new" for name in now if name not in saved]
        for name in saved:
            if name in now:
                lines += differences(saved[name], now[name], f"{path}.{name}")
        return lines
    if isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        pairs = enumerate(zip(saved, now, strict=True))
        return [line for i, two in pairs for line in differences(*two, f"{path}[{i}]")]
    return [] if saved == now else [f"{path}: {saved!r} was saved, {now!r} is there now"]


@pytest.mark.parametrize("part", PARTS)
async def test_the_contract_is_what_was_saved(part: str) -> None:
    saved = json.loads((FOLDER / f"{part}.json").read_text())

    found = differences(saved, await PARTS[part](), part)

    assert not found, "\n".join([*found, f"If this is wanted, save the contract anew: {SAVE}"])


def test_no_saved_file_is_left_over() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(PARTS)


def test_every_kind_of_difference_is_found() -> None:
    saved = {"a": 1, "b": [1, 2], "c": {"d": "x"}, "e": [1], "same": [None, {"f": 0.5}]}
    now = {"b": [1, 3], "c": {"d": "y"}, "e": [1, 2], "same": [None, {"f": 0.5}], "g": 0}

    assert differences(saved, now, "part") == [
        "part.a: gone",
        "part.g: new",
        "part.b[1]: 2 was saved, 3 is there now",
        "part.c.d: 'x' was saved, 'y' is there now",
        "part.e: [1] was saved, [1, 2] is there now",
    ]


def save() -> None:
    """Write what is there now in place of what was saved."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    FOLDER.mkdir(exist_ok=True)
    for name, part in PARTS.items():
        text = json.dumps(asyncio.run(part()), indent=1, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(f"{text}\n")
    print(f"saved {', '.join(PARTS)} in {FOLDER}", file=sys.stderr)


if __name__ == "__main__":
    save()
