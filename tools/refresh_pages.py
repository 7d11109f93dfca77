"""Rewrite what pages and examples show of the bundled model, after a new one was bundled.

    python -m tools.refresh_pages

The bodies in `examples/` and the scenes of the page at `/` are taken from bundled episodes.
`docs/http.md` says what the model's numbers mean, from its spec and its limits: what stands between
the markers of each piece. The README's answers, each in a block that says `json answer` or `json
excerpt`, are those of the started service. Look at the sentences around all these afterwards: they
tell a story about the numbers.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from models.checkpoint import Checkpoint, load_checkpoint
from models.spec import Feature, Spec
from service.settings import PRETRAINED
from tests.test_end_to_end.conftest import launch
from training.running.files import replace_between

ROOT = Path(__file__).parents[1]
README, HTTP, EXAMPLES = ROOT / "README.md", ROOT / "docs" / "http.md", ROOT / "examples"
SCENES = ROOT / "service" / "http" / "static" / "page" / "episodes.json"
SHOWN = re.compile(r"(```bash\n(curl [^\n]+)\n```\n+```json (\w+)\n)(.+?)```", re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"

GOES_ON, AT_STEP = "careful-7", 20
"""Episode of `predict.json` and `rollout.json`, chosen by hand: a truck, a person at the road's
edge."""
CRASHES, BEFORE_END = "crash-2", 12
"""Episode of `safety-check.json`: a lane change into a long vehicle."""

SHOWN_EPISODES = {
    "crash-2": "Crash: a lane change into a long vehicle",
    "off-road-5": "Off the road: too fast in a bend",
    "careful-7": "Careful: past a truck, a person at the edge",
    "crash-4": "Crash: a car that swerves in vain",
}
"""Episodes of the page at `/` with their titles, chosen by hand."""
MOST_STEPS = 44
"""Steps of each of them: its last ones, or if nothing happens in it, those from `AT_STEP` on."""

_WIDTH = 118


def write_examples(spec: Spec, folder: Path) -> None:
    """Write the request bodies into a folder."""
    goes_on, crashes = (
        json.loads((PRETRAINED / "episodes" / f"{name}.json").read_text())
        for name in (GOES_ON, CRASHES)
    )
    state, actions = goes_on["states"][AT_STEP], goes_on["actions"][AT_STEP:][:16]
    start = len(crashes["actions"]) - BEFORE_END
    bodies = {
        "predict": {"state": state, "action": actions[0]},
        "rollout": {
            "state": state,
            "actions": [actions, [[0.0, 0.0, 1.0]] * len(actions)],
            "outputs": ["returns", "crash_probability", "uncertainty"],
        },
        "safety-check": {"state": crashes["states"][start], "actions": crashes["actions"][start:]},
    }
    for name, body in bodies.items():
        meant = f',\n "dt_s": {spec.dt_s},\n "frame": "{spec.frame}"\n}}\n'
        (folder / f"{name}.json").write_text(json.dumps(body)[:-1] + meant)


def page_episodes(spec: Spec) -> str:
    """Return the episodes of the page at `/` as JSON, their numbers cut to five digits."""
    shown = []
    for name, title in SHOWN_EPISODES.items():
        episode = json.loads((PRETRAINED / "episodes" / f"{name}.json").read_text())
        count = len(episode["actions"])
        first = AT_STEP if episode["outcome"] == "none" else max(0, count - MOST_STEPS)
        last = min(first + MOST_STEPS, count)
        shown.append(
            {
                "name": name,
                "title": title,
                "outcome": episode["outcome"],
                "states": _cut(episode["states"][first : last + 1]),
                "actions": _cut(episode["actions"][first:last]),
            }
        )
    names = {
        "state_features": [x.name for x in spec.state],
        "action_features": [x.name for x in spec.action],
    }
    return json.dumps({**names, "episodes": shown}, separators=(",", ":")) + "\n"


def _cut(rows: list[list[float]]) -> list[list[float]]:
    return [[float(f"{x:.5g}") for x in row] for row in rows]


def write_numbers(checkpoint: Checkpoint, page: Path) -> None:
    """Write what the numbers of a checkpoint mean between the markers of a page.

    Raises:
        ValueError: The page lacks markers.
    """
    spec = checkpoint.spec
    pieces = {"states": _states(checkpoint), "actions": _actions(spec), "scene": _scene(spec)}
    for name, text in pieces.items():
        start = f"<!-- {name}: written by `python -m tools.refresh_pages` -->"
        replace_between(page, start, f"<!-- end of {name} -->", f"\n{text}\n\n")


def _states(checkpoint: Checkpoint) -> str:
    """Return the frame, its drawing and the table of state features."""
    spec, limits = checkpoint.spec, checkpoint.limits
    texts = {convention.about: convention.text for convention in spec.conventions}
    known = [
        f"{low:.3g} to {high:.3g}"
        for low, high in zip(limits.state_low, limits.state_high, strict=True)
    ]
    rows = [
        [*_named(x), known[i], x.meaning]
        for i, x in enumerate(spec.state)
        if not re.match("neighbour_[2-9]", x.name)
    ]
    table = _table(["state feature", "unit", "sensible", "known", "meaning"], rows)
    return "\n\n".join([_filled(texts["frame"]), f"```text\n{texts['drawing']}\n```", table])


def _actions(spec: Spec) -> str:
    """Return the tables of action features and of kinds, and the other conventions."""
    kinds = [
        [x.kind, *(f"{low:g} to {high:g}" for low, high in (x.length_m, x.width_m))]
        for x in spec.road_users
    ]
    items = [
        _filled(f"**{x.about.capitalize()}.** {x.text}", "- ", "  ")
        for x in spec.conventions
        if x.about not in ("frame", "drawing")
    ]
    parts = [
        _table(
            ["action feature", "unit", "allowed", "meaning"],
            [[*_named(x), x.meaning] for x in spec.action],
        ),
        _table(["kind that was trained on", "length, m", "width, m"], kinds),
        "\n".join(items),
    ]
    return "\n\n".join(parts)


def _scene(spec: Spec) -> str:
    """Return the example in words and as a body."""
    assert spec.example is not None
    words = _filled(f"**A scene in numbers.** {spec.example.scene}")
    return f"{words}\n\n```json\n{_body(spec)}\n```"


def _named(feature: Feature) -> tuple[str, str, str]:
    """Return a feature's name, that of any slot for the first one's, its unit and its range."""
    name = feature.name.replace("neighbour_1", "neighbour_N")
    return f"`{name}`", feature.unit, f"{feature.low:g} to {feature.high:g}"


def _body(spec: Spec) -> str:
    """Return the example's body, the ego and each slot on a line of its own."""
    example, lines, line = spec.example, [], ""
    assert example is not None
    for feature, value in zip(spec.state, example.state, strict=True):
        if line and feature.name.endswith(("_length", "_1_acceleration")):
            lines.append(line)
            line = ""
        line += f", {value!r}" if line else f"  {value!r}"
    states = ",\n".join([*lines, line])
    meant = f'"dt_s": {spec.dt_s}, "frame": "{spec.frame}"'
    return f'{{"state": [\n{states}\n ],\n "action": {json.dumps(list(example.action))}, {meant}}}'


def _filled(text: str, first: str = "", others: str = "") -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, *rows]
    text = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([text[0], "|" + "---|" * len(head), *text[1:]])


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


def _write_answers() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = launch(Path(folder) / "log")
        try:
            server.wait_until_ready()
            README.write_text(
                SHOWN.sub(lambda match: _answer(match, server.url), README.read_text())
            )
        finally:
            server.stop()


def main() -> None:
    """Rewrite examples, the page's scenes, `docs/http.md` and README.md in place."""
    checkpoint = load_checkpoint(PRETRAINED)
    write_examples(checkpoint.spec, EXAMPLES)
    SCENES.write_text(page_episodes(checkpoint.spec))
    write_numbers(checkpoint, HTTP)
    _write_answers()


if __name__ == "__main__":
    main()
