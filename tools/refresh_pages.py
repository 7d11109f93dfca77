"""Rewrite the answers that the README shows, after a new model was bundled.

    python -m tools.refresh_readme

Starts the service, asks what the README's curls ask, and puts the answers in their places. Look at
the sentences around them afterwards: they tell a story about the numbers.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from tests.test_end_to_end.conftest import launch

README = Path(__file__).parents[1] / "README.md"
SHOWN = re.compile(r"(```bash\n(curl [^\n]+)\n```\n+```json (\w+)\n)(.+?)```", re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"


def shown_as(value: Any, depth: int = 0) -> str:
    """Return JSON with objects indented by one and lists of numbers filled to the line."""
    pad = " " * (depth + 1)
    if isinstance(value, dict):
        if len(json.dumps(value)) < 60:
            return json.dumps(value)
        items = [f"{pad}{json.dumps(k)}: {shown_as(x, depth + 1)}" for k, x in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + pad[1:] + "}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(pad + shown_as(x, depth + 1) for x in value) + f"\n{pad[1:]}]"
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, list) and len(text) > 80:
        inside = textwrap.fill(text[1:-1], 98, initial_indent=pad, subsequent_indent=pad)
        return "[\n" + inside + "]"
    return text


def _answer(match: re.Match[str], url: str) -> str:
    before, command, kind, old = match.groups()
    arguments = command.replace(ADDRESS, url).split()
    got = json.loads(subprocess.run(arguments, capture_output=True, check=True).stdout)
    if kind == "excerpt":
        got = {key: got[key] for key in json.loads(old)}
    return f"{before}{shown_as(got)}\n```"


def main() -> None:
    """Rewrite README.md in place."""
    with tempfile.TemporaryDirectory() as folder:
        server = launch(Path(folder) / "log")
        try:
            server.wait_until_ready()
            README.write_text(
                SHOWN.sub(lambda match: _answer(match, server.url), README.read_text())
            )
        finally:
            server.stop()
    print(f"rewrote {README.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
