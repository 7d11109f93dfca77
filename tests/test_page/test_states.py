"""The page when something is different: keys, failures, other models, small and dark screens."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import save_checkpoint
from tests.test_end_to_end.conftest import Server, launch
from tests.test_models.test_checkpoint import small_checkpoint
from tests.test_page.conftest import Open, barriers, shoot
from tests.test_page.test_browser import copied, verdict_of, wait_for_verdict

pytestmark = pytest.mark.slow

PHONE = {"width": 360, "height": 740}
FAILURE = {"error": {"code": "some_code", "message": "the reason", "details": []}}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a service that holds a model of something else, and wants a key."""
    folder = tmp_path_factory.mktemp("other")
    save_checkpoint(small_checkpoint(), folder / "checkpoint")
    environment = {"WORLD_MODEL_API_KEYS": "secret-key-1", "WORLD_MODEL_COMPILE": "false"}
    server = launch(folder / "log", "--checkpoint", str(folder / "checkpoint"), **environment)
    server.wait_until_ready()
    yield server
    server.stop()


def enter_key(page: Any, key: str) -> None:
    page.get_by_label(re.compile("This service asks for a key")).fill(key)
    page.get_by_role("button", name="Use this key").click()


def test_a_key_is_asked_for_before_anything_is_refused(open_page: Open, other: Server) -> None:
    page = open_page(url=other.url)

    enter_key(page, "secret-key-1")

    assert verdict_of(page) == "unsafe"
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [
        0,
        0,
        "",
    ]
    texts = [copied(page, f"Copy {what}") for what in ("as curl", "as Python", "a link")]
    assert ["WORLD_MODEL_KEY" in text for text in texts] == [True, True, False]
    assert "#view=" in texts[2]
    assert not any("secret-key-1" in text for text in [*texts, page.content()])
    view = texts[2].partition("#view=")[2]
    assert b"secret-key-1" not in urlsafe_b64decode(view + "=" * (-len(view) % 4))


def test_a_key_that_ends_costs_no_plan(open_page: Open, other: Server) -> None:
    page = open_page(url=other.url, quiet=False)
    enter_key(page, "secret-key-1")
    verdict_of(page)
    page.wait_for_load_state("networkidle")
    page.route("**/safety-check", lambda route: route.fulfill(status=401, json=FAILURE))
    curve = page.locator(".curve").first
    curve.focus()
    page.keyboard.press("Shift+PageUp")
    page.get_by_text("This key is not known here.").wait_for()
    assert page.locator(".verdict .word").count() == 0
    drawn = curve.get_attribute("aria-valuenow")
    page.unroute("**/safety-check")

    enter_key(page, "secret-key-1")

    verdict_of(page)
    assert curve.get_attribute("aria-valuenow") == drawn
    assert page.locator("#problem").is_hidden()


def test_a_wrong_key_is_said_to_be_wrong(open_page: Open, other: Server, modules: Path) -> None:
    page = open_page(url=other.url, quiet=False, viewport=PHONE)

    enter_key(page, "not-the-key")

    page.get_by_text("This key is not known here.").wait_for()
    assert barriers(page, modules) == {}
    enter_key(page, "secret-key-1")
    assert verdict_of(page) == "unsafe"
    assert page.locator("#problem").is_hidden()


def test_a_model_of_other_features_has_a_plot_for_each(open_page: Open, other: Server) -> None:
    page = open_page(url=other.url)
    enter_key(page, "secret-key-1")
    verdict_of(page)

    assert page.locator(".above .chart").count() == 5
    assert page.get_by_text("Seen from above").is_hidden()
    assert page.get_by_role("slider", name=re.compile("^action_")).count() == 2
    assert page.locator("#scene option:not([hidden])").all_inner_texts() == [
        "The model's own example"
    ]
    before = page.locator(".above polyline").first.get_attribute("points")
    curve = page.locator(".curve").first
    curve.focus()
    with page.expect_response("**/safety-check"):
        page.keyboard.press("Shift+PageUp")
    page.get_by_label("Show 64 random plans").check()
    page.get_by_text(re.compile("64 random plans")).wait_for()
    for _ in range(50):  # what is drawn follows the answer
        if page.locator(".above polyline").first.get_attribute("points") != before:
            break
        page.wait_for_timeout(100)
    else:
        pytest.fail("the plot is the one of the plan before")
    page.get_by_label("Show why").check()
    page.get_by_text(re.compile("a baseline, “training mean”: the mean of all states")).wait_for()
    assert page.locator(".groups tbody tr").count() >= 1
    assert page.locator(".features li").count() >= 1
    shoot(page, "other-model")


@pytest.mark.parametrize(
    ("status", "said"),
    [(429, "too much to do"), (503, "is not ready"), (422, "refused this"), (500, "has a fault")],
)
def test_a_failure_is_said_and_ends(open_page: Open, status: int, said: str) -> None:
    page = open_page(quiet=False)
    verdict_of(page)
    headers = {"Retry-After": "1"}
    page.route(
        "**/safety-check", lambda route: route.fulfill(status=status, json=FAILURE, headers=headers)
    )

    page.get_by_label("Scene").select_option("careful-7")
    problem = page.get_by_role("alert").filter(has_text=said)
    problem.wait_for()
    assert "the reason" in problem.inner_text()
    assert ("Trying again" in problem.inner_text()) == (status in {429, 503})
    assert page.locator(".verdict .word").count() == 0, "the verdict on the scene before is gone"
    page.unroute("**/safety-check")
    if status in {422, 500}:
        page.get_by_role("button", name="Brake", exact=True).click()

    wait_for_verdict(page, "safe")
    assert page.locator("#problem").is_hidden()


def test_what_is_shown_while_an_answer_is_to_come_is_said_to_be_of_before(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)
    page.wait_for_load_state("networkidle")
    held: list[Any] = []
    page.route("**/safety-check", lambda route: held.append(route))

    with page.expect_request("**/safety-check"):
        page.get_by_role("button", name="Brake", exact=True).click()

    waiting = page.get_by_text("This is for what was chosen before")
    waiting.wait_for()
    assert page.locator(".verdict").get_attribute("aria-busy") == "true"
    held[0].continue_()
    waiting.wait_for(state="hidden")
    assert page.locator(".verdict").get_attribute("aria-busy") == "false"


def test_where_it_is_not_to_be_had_why_is_asked_again_and_the_verdict_stays(
    open_page: Open,
) -> None:
    page = open_page(quiet=False, viewport=PHONE)
    verdict_of(page)
    failures = [(504, "found no time for it"), (429, "has too much to do")]

    def refuse(route: Any) -> None:
        if failures and "attribution" in route.request.post_data_json["include"]:
            status, _ = failures[0]
            route.fulfill(status=status, json=FAILURE, headers={"Retry-After": "2"})
        else:
            route.continue_()

    page.route("**/safety-check", refuse)
    page.get_by_label("Show why").check()
    page.get_by_text("Why: computing, while the service has nothing else to do").wait_for()
    while failures:
        line = page.locator(".why-line").filter(has_text=failures[0][1])
        line.wait_for()
        assert "The verdict holds without it. Trying again in" in line.inner_text()
        assert verdict_of(page) == "unsafe"
        assert page.locator("#problem").is_hidden()
        failures.pop(0)

    # Where the machine is busy, the service itself may find no time for it, too.
    page.get_by_text("Why above 99.9 %: road user 1 +").wait_for(timeout=120_000)


def test_a_service_without_attribution_is_not_asked_why(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)

    def without_attribution(route: Any) -> None:
        document = route.fetch().json()
        fields = document["components"]["schemas"]["SafetyCheckRequest"]["properties"]
        fields["include"]["items"]["enum"].remove("attribution")
        route.fulfill(json=document)

    page.route("**/openapi.json", without_attribution)
    page.reload()
    verdict_of(page)
    page.wait_for_load_state("networkidle")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_label("Show why").check()

    page.get_by_text("this service does not tell what a crash probability comes from").wait_for()
    page.wait_for_timeout(1000)
    assert asked == []
    assert page.locator(".why").is_hidden()


def test_a_service_that_is_down_is_waited_for(open_page: Open, server: Server) -> None:
    page = open_page("#", quiet=False)
    verdict_of(page)
    page.route("**/model", lambda route: route.abort())

    page.reload()
    page.get_by_role("alert").filter(has_text="does not answer. Is it running?").wait_for()
    page.unroute("**/model")

    assert verdict_of(page) == "unsafe"


def test_an_answer_that_is_cut_or_holds_no_numbers_does_not_stop_the_page(open_page: Open) -> None:
    page = open_page(quiet=False)
    verdict_of(page)
    brake = page.get_by_role("button", name="Brake", exact=True)

    def without_numbers(route: Any) -> None:
        answer = route.fetch().json()
        answer["trajectory"][3:] = [[None] * 34 for _ in answer["trajectory"][3:]]
        reason = {"rule": "not_finite", "message": "no number"}
        answer.update(verdict="unknown", crash_probability=None, reasons=[reason])
        route.fulfill(json=answer)

    page.route("**/safety-check", lambda route: route.fulfill(body='{"verdict": "sa'))
    brake.click()
    page.get_by_role("alert").filter(has_text="its answer cannot be read").wait_for()
    page.unroute("**/safety-check")
    page.route("**/safety-check", without_numbers)
    brake.click()
    wait_for_verdict(page, "unknown")
    page.get_by_text("Nothing is drawn").wait_for()
    page.get_by_label("Time").fill("5")
    page.unroute("**/safety-check")
    page.get_by_role("button", name="As recorded").click()

    wait_for_verdict(page, "unsafe")
    assert page.locator(".birdseye").count() == 1


def test_a_link_of_another_model_is_refused_and_the_page_goes_on(open_page: Open) -> None:
    page = open_page("#view=AAAA")

    assert verdict_of(page) == "unsafe"
    said = page.get_by_role("alert").filter(has_text="This link is damaged")
    assert said.inner_text() == "This link is damaged, or it is of another model."
    page.get_by_role("link", name="Skip to the prediction").press("Enter")
    page.get_by_role("button", name="Brake", exact=True).click()
    page.wait_for_load_state("networkidle")
    assert said.count() == 1
    assert page.locator("#problem").is_hidden()


def test_members_are_bands_where_the_service_tells_them_apart(open_page: Open) -> None:
    page = open_page()

    page.locator(".birdseye .band").first.wait_for()
    assert "Shaded bands: where the 5 members" in page.locator("#about-band").inner_text()
    shoot(page, "bands")


def test_a_service_that_does_not_tell_members_apart_gets_no_band(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)

    def without_members(route: Any) -> None:
        document = route.fetch().json()
        del document["components"]["schemas"]["RolloutRequest"]["properties"]["members"]
        route.fulfill(json=document)

    page.route("**/openapi.json", without_members)
    page.reload()
    verdict_of(page)
    page.wait_for_load_state("networkidle")

    assert page.locator(".birdseye .band").count() == 0
    assert "no band is drawn" in page.locator("#about-band").inner_text()


def test_doubts_and_expected_errors_are_shown_where_the_service_tells_them(
    open_page: Open,
) -> None:
    page = open_page()
    verdict_of(page)

    def with_limits(route: Any) -> None:
        model = route.fetch().json()
        model["thresholds"].update(safe_below=0.02, expected_error_m=1.0)
        route.fulfill(json=model)

    def in_doubt(route: Any) -> None:
        answer = route.fetch().json()
        rules = ("crash_not_excluded", "physics_contact", "a_rule_to_come")
        reasons = [{"rule": rule, "message": f"{rule} says so"} for rule in rules]
        answer.update(verdict="unknown", expected_error_m=1.5, uncertainty=None, reasons=reasons)
        route.fulfill(json=answer)

    page.route("**/model", with_limits)
    page.route("**/safety-check", in_doubt)
    page.reload()

    wait_for_verdict(page, "unknown")
    text = page.locator(".panel").inner_text()
    assert "A crash is not likely, but cannot be excluded either." in text
    assert "By physics alone the ego touches somebody or leaves the road" in text
    assert "Rule a rule to come." in text
    assert "a_rule_to_come says so" in text
    assert "Expected error of predicted places, m: 1.5 of at most 1" in text
    assert "over the limit" in text
    assert "standard deviations: not known" in text
    chart = page.get_by_role("img", name=re.compile("^Crash probability"))
    assert "safe below 0.02" in str(chart.get_attribute("aria-label"))


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("dark", 360)])
def test_the_page_has_no_known_barrier(
    open_page: Open, modules: Path, scheme: str, width: int
) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    verdict_of(page)
    page.get_by_role("button", name="Compare two plans").click()
    page.locator(".panel").nth(1).locator(".word").wait_for()
    page.get_by_label("Show 64 random plans").check()
    page.get_by_label("Show why").check()
    page.get_by_text("Live: how the service is doing").click()
    page.get_by_role("row", name=re.compile("WorldModelDown")).wait_for()
    for panel in page.locator(".panel").all():
        panel.locator(".groups tbody tr").first.wait_for()

    assert barriers(page, modules) == {}
    assert page.evaluate("document.documentElement.scrollWidth") == width
    shoot(page, f"compare-{scheme}-{width}")
    page.get_by_role("button", name="Paste a state").click()
    assert barriers(page, modules) == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(
    open_page: Open, modules: Path, scheme: str
) -> None:
    page = open_page(
        viewport=PHONE,
        color_scheme=scheme,
        reduced_motion="reduce",
        has_touch=True,
    )

    assert verdict_of(page) == "unsafe"
    page.get_by_label("Show why").check()
    page.locator(".groups tbody tr").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert barriers(page, modules) == {}
    shoot(page, f"phone-{scheme}")


def test_everything_is_reached_by_the_keyboard(open_page: Open) -> None:
    page = open_page()
    verdict_of(page)
    page.wait_for_load_state("networkidle")
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.getAttribute('aria-label')"
                " || document.activeElement.textContent"
            )
        )

    wanted = ["Skip to the prediction", "scene", "start", "play", "step", "recorded", "fan", "why"]
    wanted += ["compare", "link", "curl", "python", "paste-open", "Brake", "Best fallback"]
    assert set(wanted) <= set(seen)
    assert sum(str(name).startswith(("steer:", "throttle:", "brake:")) for name in seen) >= 3
