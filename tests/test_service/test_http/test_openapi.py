"""/docs and the OpenAPI document: behind a prefix, with keys, and as a browser uses them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import httpx
import orjson
import pytest
from starlette.types import Receive, Scope, Send

from service.app import WorldModelApp
from service.http.endpoints import PROBES
from service.http.operations import OPEN_PATHS
from tests.fakes.engine import FakeEngine, error_of, serving

PREFIX = "/cars/model"
PAGE = f"http://service{PREFIX}/docs"
OPERATIONS = ("/predict", "/rollout", "/safety-check")


def behind_prefix(app: WorldModelApp) -> httpx.AsyncClient:
    """Return a client of a proxy that strips a prefix and knows no other path."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        assert path.startswith(f"{PREFIX}/"), f"{path} is not below the prefix"
        stripped = path.removeprefix(PREFIX)
        await app({**scope, "path": stripped, "raw_path": stripped.encode()}, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(proxy))


def files_of(page: str) -> list[str]:
    return [urljoin(PAGE, url) for url in re.findall(r'(?:src|href)="([^"]+)"', page)]


async def document_of(client: httpx.AsyncClient) -> tuple[str, dict[str, Any]]:
    """Return the document's URL and content, as the page's script asks for it."""
    script = (await client.get(urljoin(PAGE, "docs/assets/docs.js"))).text
    named = re.search(r'url: "([^"]+)"', script)
    assert named is not None
    url = urljoin(PAGE, named[1])
    return url, (await client.get(url)).json()


async def test_page_files_document_and_calls_work_behind_a_prefix(engine: FakeEngine) -> None:
    async with serving(engine) as (app, _), behind_prefix(app) as client:
        page = await client.get(PAGE)
        for url in files_of(page.text):
            assert (await client.get(url)).status_code == 200, url
        url, document = await document_of(client)
        server = urljoin(url, document["servers"][0]["url"])
        for path in OPERATIONS:
            example = example_of(document, path)
            answer = await client.post(server.rstrip("/") + path, json=example)
            assert answer.status_code == 200, answer.text

    assert len(files_of(page.text)) == 4


def example_of(document: dict[str, Any], path: str) -> dict[str, Any]:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return dict(content["application/json"]["example"])


def fields_of(document: dict[str, Any], path: str) -> dict[str, Any]:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return dict(document["components"]["schemas"][name]["properties"])


@pytest.mark.parametrize("path", OPERATIONS)
async def test_every_example_and_every_default_is_accepted(
    client: httpx.AsyncClient, path: str
) -> None:
    document = (await client.get("/openapi.json")).json()
    whole = example_of(document, path)
    bodies = [whole]
    for name, field in fields_of(document, path).items():
        given = [*field.get("examples", []), *([field["default"]] if "default" in field else [])]
        bodies += [{**whole, name: value} for value in given]

    answers = [await client.post(path, json=body) for body in bodies]

    assert [answer.status_code for answer in answers] == [200] * len(bodies)
    assert len(bodies) > 2


def defaults_in(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        if "properties" in node or "type" in node or "anyOf" in node:
            yield node.get("default", "none")
        for inner in node.values():
            yield from defaults_in(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from defaults_in(inner)


async def test_no_field_has_null_for_a_default(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()

    found = list(defaults_in(document["components"]["schemas"]))

    assert None not in found
    assert len(found) > 100


async def test_the_page_is_open_and_its_calls_need_the_key_it_lets_one_enter(
    engine: FakeEngine,
) -> None:
    async with serving(engine, api_keys="alpha") as (app, _), behind_prefix(app) as client:
        page = await client.get(PAGE)
        files = [(await client.get(url)).status_code for url in files_of(page.text)]
        _, document = await document_of(client)
        body = example_of(document, "/predict")
        url = f"http://service{PREFIX}/predict"
        refused = await client.post(url, json=body)
        answered = await client.post(url, json=body, headers={"Authorization": "Bearer alpha"})
        others = [
            await client.get(f"http://service{PREFIX}{path}")
            for path in ("/model", "/docs/assets/redoc.standalone.js", "/docs/", "/docs/assets")
        ]

    assert page.status_code == 200
    assert files == [200] * 4
    assert error_of(refused)["code"] == "unauthorized"
    assert answered.status_code == 200
    assert [other.status_code for other in others] == [401] * 4
    schemes = document["components"]["securitySchemes"]
    assert [(x["type"], x["scheme"]) for x in schemes.values()] == [("http", "bearer")]
    needed = {
        path
        for path, item in document["paths"].items()
        for operation in item.values()
        if operation.get("security") == [{name: [] for name in schemes}]
    }
    assert needed == {"/predict", "/rollout", "/safety-check", "/model"}


async def test_without_keys_the_document_asks_for_none(client: httpx.AsyncClient) -> None:
    text = (await client.get("/openapi.json")).text

    assert "security" not in text


async def test_the_page_runs_no_inline_script_and_names_no_other_host(
    client: httpx.AsyncClient,
) -> None:
    page = (await client.get("/docs")).text
    script = await client.get("/docs/assets/docs.js")

    assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == ["", ""]
    assert not re.search(r"\son\w+=|<style|style=", page)
    assert "://" not in page + script.text
    assert "validatorUrl: null" in script.text
    assert script.headers["content-type"].startswith("text/javascript")


async def test_docs_switched_off_leave_nothing_behind(engine: FakeEngine) -> None:
    async with serving(engine, docs=False, api_keys="alpha") as (_, client):
        answers = [await client.get(path) for path in OPEN_PATHS if path not in PROBES]

    assert {orjson.loads(answer.content)["error"]["code"] for answer in answers} == {"not_found"}
