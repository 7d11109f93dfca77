"""A real Chromium, the real command, and a watch on what the page says to its console."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import lacks
from tests.test_end_to_end.conftest import Server, launch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STATIC = ROOT / "service" / "http" / "static" / "page"
MODULES = HERE / "node_modules"
SHOTS = ROOT / ".page"
"""Screenshots of the last run."""

Open = Callable[..., Any]


@pytest.fixture(scope="session")
def node() -> str:
    """Return the command that runs JavaScript."""
    found = shutil.which("node")
    if found is None:
        lacks("needs Node.js: apt-get install nodejs")
    return found


@pytest.fixture(scope="session")
def modules() -> Path:
    """Return the folder of npm's packages, which `make test` installs."""
    if not MODULES.exists():
        lacks("needs packages of npm: (cd tests/test_page && npm ci)")
    return MODULES


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Debian's Chromium; closed with the module, as its loop would be in others' way."""
    try:
        from playwright import sync_api
    except ImportError:
        lacks("needs playwright (PyPI)")
    chromium = shutil.which("chromium")
    if chromium is None:
        lacks("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # Containers have no user namespaces for its sandbox, and little shared memory.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        started = playwright.chromium.launch(executable_path=chromium, args=options)
        yield started
        started.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start the service with the bundled model."""
    started = launch(tmp_path_factory.mktemp("server") / "log")
    started.wait_until_ready()
    yield started
    started.stop()


@pytest.fixture
def open_page(browser: Any, server: Server) -> Iterator[Open]:
    """Open the page in a window of its own; at the end its console must have been silent."""
    contexts, said = [], []

    def open_one(
        fragment: str = "", *, url: str = server.url, quiet: bool = True, **options: Any
    ) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        if quiet:
            page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{url}/{fragment}")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert said == []


def shoot(page: Any, name: str, height: int | None = None) -> None:
    """Keep a screenshot of the whole page, or of so many pixels from its top."""
    SHOTS.mkdir(exist_ok=True)
    width = page.viewport_size["width"]
    clip = {"x": 0, "y": 0, "width": width, "height": height} if height else None
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True, clip=clip)


def barriers(page: Any, modules: Path) -> dict[str, list[str]]:
    """Return what axe-core finds on the page as it is now: by rule, the elements."""
    page.evaluate((modules / "axe-core" / "axe.min.js").read_text())
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 10
    return {x["id"]: [n["html"] for n in x["nodes"]] for x in found["violations"]}
