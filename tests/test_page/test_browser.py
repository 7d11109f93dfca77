"""The page in a real browser, with the real service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.road_users import road_users_spec
from tests.test_page.conftest import ROOT, Open, shoot

pytestmark = pytest.mark.slow


def verdict_of(page: Any, panel: int = 0) -> str:
    """Wait until the page has an answer; return the verdict's word."""
    word = page.locator(".panel").nth(panel).locator(".verdict .word")
    return str(word.inner_text()).split()[-1]


def wait_for_verdict(page: Any, word: str, panel: int = 0) -> None:
    page.locator(".panel").nth(panel).locator(f".verdict.{word}").wait_for()


def test_a_crash_is_shown_with_its_reasons(open_page: Open) -> None:
    page = open_page()

    assert verdict_of(page) == "unsafe"
    text = page.locator(".side").inner_text()
    assert "A crash is expected within 0.8 s" in text
    assert "crash_probability: crash probability 1.0000 reaches" in text
    assert re.search(r"Answered in [\d.]+ ms .* compute [\d.]+ ms", text)
    assert page.locator(".birdseye .crash").count() == 1
    assert page.locator(".birdseye .body.ego").count() == 1
    assert page.get_by_role("img", name=re.compile("Crash probability: until then from")).count()
    page.get_by_role("img", name=re.compile("Reward of each step")).wait_for()
    assert page.locator("meter").count() >= 1
    shoot(page, "crash")


@pytest.mark.parametrize(
    ("scene", "word"), [("careful-7", "safe"), ("off-road-5", "unsafe"), ("example", "safe")]
)
def test_each_kind_of_scene_has_its_verdict(open_page: Open, scene: str, word: str) -> None:
    page = open_page()
    verdict_of(page)

    page.get_by_label("Scene").select_option(scene)

    wait_for_verdict(page, word)
    shoot(page, scene)


def test_an_earlier_start_of_a_crash_is_safe_still(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)

    page.get_by_label("Start").fill("0")

    wait_for_verdict(page, "safe")
    assert "s before it happened" in page.locator("#start-text").inner_text()


def test_time_moves_what_is_drawn_and_play_goes_to_the_end(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)
    body = page.locator(".birdseye .body.ego")

    page.get_by_label("Time").fill("0")
    at_start = body.get_attribute("points")
    assert page.locator("#step-text").inner_text() == "0.00 s"
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Pause").wait_for()
    page.get_by_role("button", name="Play").wait_for()

    assert page.locator("#step-text").inner_text() == "0.80 s"
    assert body.get_attribute("points") != at_start


def test_the_recorded_future_is_shown_on_demand(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)
    assert page.locator(".birdseye .recorded").count() == 0

    page.get_by_label("Time").fill("6")
    page.get_by_label("Show what was recorded").check()

    assert page.locator(".birdseye .recorded").count() >= 2


def test_the_page_asks_no_other_host(open_page: Open, tmp_path: Path) -> None:
    page = open_page("#")
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))

    page.reload()
    verdict_of(page)

    assert len(hosts) == 1


def drag(page: Any, name: str, to: float) -> None:
    """Drag an action's whole curve to a height, from 0 (its least value) to 1."""
    curve = page.get_by_role("slider", name=re.compile(f"^{name}:"))
    curve.scroll_into_view_if_needed()
    box = curve.bounding_box()
    height = box["y"] + box["height"] * (1 - to)
    page.mouse.move(box["x"] + 2, height)
    page.mouse.down()
    for share in range(1, 21):
        page.mouse.move(box["x"] + box["width"] * share / 20 - 2, height)
    page.mouse.up()


def test_dragging_changes_the_verdict_with_one_question_at_a_time(open_page: Open) -> None:
    page = open_page()
    assert verdict_of(page) == "unsafe"
    page.wait_for_load_state("networkidle")
    at_once, most, asked = 0, 0, 0

    def begin(request: Any) -> None:
        nonlocal at_once, most, asked
        if request.method == "POST":
            at_once, asked = at_once + 1, asked + 1
            most = max(most, at_once)

    def end(request: Any) -> None:
        nonlocal at_once
        at_once -= request.method == "POST"

    page.on("request", begin)
    page.on("requestfinished", end)
    drag(page, "steer", 0.5)
    wait_for_verdict(page, "safe")

    assert asked >= 2
    assert most == 1
    pressed = page.locator(".presets [aria-pressed=true]")
    assert pressed.count() == 0
    page.get_by_role("button", name="As recorded").click()
    wait_for_verdict(page, "unsafe")


def test_keys_change_a_plan_as_a_mouse_does(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)
    brake = page.get_by_role("slider", name=re.compile("^brake:"))
    assert brake.get_attribute("aria-valuetext") == "step 1 of 16: 0"

    brake.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+PageUp")
    page.keyboard.press("ArrowUp")

    assert brake.get_attribute("aria-valuetext") == "step 2 of 16: 0.15"
    page.keyboard.press("ArrowLeft")
    assert brake.get_attribute("aria-valuenow") == "0.125"


@pytest.mark.parametrize("name", ["Keep on", "Brake", "Swerve left", "Swerve right"])
def test_each_preset_is_a_plan_of_its_own(open_page: Open, name: str) -> None:
    page = open_page()
    verdict_of(page)
    steer = page.get_by_role("slider", name=re.compile("^steer:"))
    before = steer.locator(".action").get_attribute("points")

    with page.expect_response("**/safety-check"):
        page.get_by_role("button", name=name, exact=True).click()

    assert page.locator(".presets [aria-pressed=true]").inner_text() == name
    assert steer.locator(".action").get_attribute("points") != before


def test_the_best_fallback_is_found_and_is_no_riskier(open_page: Open) -> None:
    page = open_page()
    assert verdict_of(page) == "unsafe"

    page.get_by_role("button", name="Best fallback").click()

    page.locator(".presets [aria-pressed=true]", has_text="Best fallback").wait_for()
    wait_for_verdict(page, "safe")


def test_two_plans_stand_side_by_side(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)
    page.get_by_label("Start").fill("0")
    wait_for_verdict(page, "safe")

    page.get_by_role("button", name="Compare two plans").click()
    wait_for_verdict(page, "safe", panel=1)

    boxes = [page.locator(".panel").nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert page.get_by_role("heading", name="Plan B").count() == 1
    pressed = page.locator(".presets [aria-pressed=true]").all_inner_texts()
    assert pressed == ["As recorded", "Brake"]
    shoot(page, "compare")
    page.get_by_role("button", name="Compare two plans").click()
    assert page.locator(".panel").count() == 1


def test_a_fan_of_random_plans_comes_of_one_rollout(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)
    page.wait_for_load_state("networkidle")
    sizes = []
    page.on(
        "request",
        lambda x: sizes.append(len(x.post_data_json["actions"])) if "rollout" in x.url else None,
    )

    page.get_by_label("Show 64 random plans").check()

    page.get_by_text(re.compile(r"64 random plans: \d+ reach the threshold")).wait_for()
    assert page.locator(".birdseye .fan").count() == 64
    assert sizes.count(64) == 1
    shoot(page, "fan")


def copied(page: Any, button: str) -> str:
    """Return the text that a button offers, and close its dialog."""
    page.get_by_role("button", name=button).click()
    text = page.locator("#copy-text").input_value()
    page.get_by_role("button", name="Close").click()
    return str(text)


def test_a_link_shows_the_same_again(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)
    page.get_by_label("Scene").select_option("off-road-5")
    drag(page, "brake", 1.0)
    page.get_by_role("button", name="Compare two plans").click()
    page.locator(".panel").nth(1).locator(".word").wait_for()
    page.get_by_label("Time").fill("5")

    link = copied(page, "Copy a link")
    other = open_page("#" + link.partition("#")[2])
    other.locator(".panel").nth(1).locator(".word").wait_for()

    assert other.get_by_label("Scene").input_value() == "off-road-5"
    assert other.locator("#step-text").inner_text() == "0.25 s"
    points = [
        p.locator(".panel").nth(0).locator(".action").nth(2).get_attribute("points")
        for p in (page, other)
    ]
    assert points[0] == points[1]


def test_the_question_can_be_asked_from_a_terminal_and_from_python(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)

    by_curl = subprocess.run(
        ["bash", "-c", copied(page, "Copy as curl")], capture_output=True, text=True, check=True
    )
    by_python = subprocess.run(
        [sys.executable, "-c", copied(page, "Copy as Python")],
        capture_output=True,
        text=True,
        check=True,
    )

    answer = json.loads(by_curl.stdout)
    assert answer["verdict"] == "unsafe"
    assert f"'crash_probability': {answer['crash_probability']}" in by_python.stdout


def test_a_request_can_be_pasted(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)

    page.get_by_role("button", name="Paste a state").click()
    text = page.get_by_label(re.compile("A list of numbers"))
    text.fill("[1, 2]")
    page.get_by_role("button", name="Use it").click()
    assert "a list of 34 numbers" in page.locator("#paste-problem").inner_text()
    text.fill((ROOT / "examples" / "rollout.json").read_text())
    page.get_by_role("button", name="Use it").click()

    wait_for_verdict(page, "safe")
    assert page.get_by_label("Scene").input_value() == "pasted"


def test_why_names_first_who_is_in_the_way(open_page: Open) -> None:
    spec = road_users_spec()
    values = {"speed": 20, "left_edge": 8, "right_edge": 8, "length": 4.5, "width": 1.8}
    beside = {"length": 4.5, "width": 1.8, "dx": 2, "dy": 6, "speed": 20}
    ahead = {"length": 4.5, "width": 1.8, "dx": 13, "dy": 0.2, "speed": 0}
    for slot, user in ((1, beside), (2, ahead)):
        values.update({f"neighbour_{slot}_{name}": x for name, x in user.items()})
    state = [values.get(feature.name, 0) for feature in spec.state]
    page = open_page()
    verdict_of(page)

    page.get_by_role("button", name="Paste a state").click()
    page.get_by_label(re.compile("A list of numbers")).fill(json.dumps(state))
    page.get_by_role("button", name="Use it").click()
    page.get_by_label("Show why").check()

    page.locator(".groups tbody tr").first.wait_for()
    assert "road user 2" in page.locator(".groups tbody tr").first.inner_text()
    first = page.locator(".features li").first.inner_text().replace("\xa0", " ")
    told = r"\+\d+ %\sneighbour_2_\w+ \S+ m \(baseline: .*; spread .* m\sIf it were .*: .* %"
    assert re.search(told, first, re.DOTALL)
    assert page.get_by_text("They are no proof of what causes a crash").is_visible()
    assert page.locator(".birdseye .glow.adds").count() >= 1
    assert page.locator(".birdseye .name").filter(has_text=re.compile(r"^\+\d+\s%")).count() >= 1
    scene = page.get_by_role("img", name=re.compile(r"road user 2, .* share of .* \+\d+\s%"))
    assert scene.count() == 1


def test_why_follows_the_plan_and_is_taken_along(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)
    page.get_by_label("Show why").check()
    line = page.locator(".why-line")
    line.filter(has_text=re.compile("above 99.9.%: road user 1 [+]")).wait_for()
    assert page.locator(".editor .steps rect").count() == 3 * 16
    page.locator(".birdseye .band").first.wait_for()
    shoot(page, "why", height=1490)
    by_curl = copied(page, "Copy as curl")
    assert '"include":["attribution"]' in by_curl
    assert "X-Request-Timeout-Seconds" in by_curl

    drag(page, "steer", 0.5)
    wait_for_verdict(page, "safe")
    line.filter(has_text="computing").wait_for()
    assert page.get_by_text("This is of the plan before.").is_visible()
    assert page.locator(".birdseye .glow").count() == 0
    line.filter(has_text=re.compile("^Why (?!above)[0-9a-z]")).wait_for()
    assert page.get_by_text("This is of the plan before.").is_hidden()
    shown = page.locator(".features li:visible").count()
    page.get_by_role("button", name="Show all").click()
    assert page.locator(".features li:visible").count() > shown

    page.get_by_role("button", name="Compare two plans").click()
    page.locator(".panel").nth(1).locator(".groups tbody tr").first.wait_for()
    assert "attribution" not in copied(page, "Copy as Python")
    other = open_page("#" + copied(page, "Copy a link").partition("#")[2])
    other.locator(".panel").nth(1).locator(".groups tbody tr").first.wait_for()
    page.get_by_label("Show why").uncheck()
    assert page.locator(".why:visible, .why-line:visible, .birdseye .glow").count() == 0


def test_the_last_minutes_of_the_service_are_shown_while_one_looks(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)
    page.wait_for_load_state("networkidle")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    page.wait_for_timeout(5500)
    assert "metrics" not in asked

    page.get_by_text("Live: how the service is doing").click()
    page.get_by_role("row", name=re.compile("WorldModelNotReady ✓ quiet")).wait_for()
    page.get_by_role("button", name="Brake", exact=True).click()
    page.get_by_text(re.compile("seen for [1-9]")).wait_for()

    requests = page.get_by_role("img", name=re.compile("^Predictions asked for"))
    assert not (requests.get_attribute("aria-label") or "").endswith("most 0 1/s")
    facts = page.locator(".live-facts").inner_text()
    assert re.search(r"Device: cpu; memory of the process: \d+ MiB; no GPU memory", facts)
    assert page.get_by_role("row", name=re.compile(r"\? not known here")).count() == 2
    shoot(page, "live")
