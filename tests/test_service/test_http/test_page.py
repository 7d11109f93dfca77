"""The page at /: who gets it, with what headers, and where it works."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import httpx

from service.http.page import PAGE_PATHS
from tests.fakes.engine import FakeEngine, serving
from tests.test_service.test_http.test_openapi import PREFIX, behind_prefix

ROOT = f"http://service{PREFIX}/"


async def test_the_page_and_all_its_files_work_behind_a_prefix(engine: FakeEngine) -> None:
    async with serving(engine) as (app, _), behind_prefix(app) as client:
        page = (await client.get(ROOT)).text
        named = re.findall(r'(?:src|href)="([^"#]+)"', page)
        main = (await client.get(urljoin(ROOT, "page/main.js"))).text
        named += [f"page/{name}" for name in re.findall(r'from "./([\w.]+)"', main)]
        answers = [await client.get(urljoin(ROOT, url)) for url in named]

    assert len(named) > 8
    assert {answer.status_code for answer in answers} == {200}


async def test_the_page_runs_only_its_own_scripts(client: httpx.AsyncClient) -> None:
    for path in PAGE_PATHS:
        headers = (await client.get(path)).headers

        policy = dict(
            x.strip().split(" ", 1) for x in headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "camera=()" in headers["permissions-policy"]


async def test_types_are_those_that_browsers_want(client: httpx.AsyncClient) -> None:
    kinds = {
        path: (await client.get(path)).headers["content-type"].partition(";")[0]
        for path in ("/", "/page/main.js", "/page/style.css", "/page/icon.svg")
    }

    assert list(kinds.values()) == ["text/html", "text/javascript", "text/css", "image/svg+xml"]


async def test_a_browser_that_has_a_file_gets_it_once(client: httpx.AsyncClient) -> None:
    first = await client.get("/page/main.js")
    tag = first.headers["etag"]
    again, weak, other = [
        await client.get("/page/main.js", headers={"If-None-Match": value})
        for value in (tag, f'"x", W/{tag}', '"x"')
    ]

    assert first.headers["cache-control"] == "no-cache"
    assert [x.status_code for x in (again, weak, other)] == [304, 304, 200]
    assert again.content == b""
    assert again.headers["etag"] == tag
    assert "content-security-policy" in again.headers


async def test_the_page_needs_no_key_and_head_is_answered(engine: FakeEngine) -> None:
    async with serving(engine, api_keys="alpha") as (_, client):
        got = [(await client.get(path)).status_code for path in PAGE_PATHS]
        head = await client.head("/")
        model = await client.get("/model")

    assert set(got) == {200}
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0
    assert model.status_code == 401


async def test_the_page_works_while_the_service_is_not_ready(engine: FakeEngine) -> None:
    async with serving(engine) as (app, client):
        app.health.start_draining()
        ready, page = await client.get("/readyz"), await client.get("/")

    assert (ready.status_code, page.status_code) == (503, 200)


async def test_looking_at_the_page_is_no_prediction(client: httpx.AsyncClient) -> None:
    for path in PAGE_PATHS:
        await client.get(path)
    text = (await client.get("/metrics")).text

    counted = re.findall(r'^world_model_(\w+)_total\{.*endpoint="([^"]+)".* [1-9]', text, re.M)
    assert set(counted) == {("requests", "/"), ("requests", "other"), ("outcomes", "other")}


async def test_the_page_is_no_part_of_the_document(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    assert not set(paths) & set(PAGE_PATHS)


async def test_a_file_that_is_not_the_pages_is_not_found(client: httpx.AsyncClient) -> None:
    for path in ("/page/", "/page/index.html", "/page/..%2fdocs.html", "/page/main.js/"):
        answer = await client.get(path)

        assert answer.json()["error"]["code"] == "not_found"
