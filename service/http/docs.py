"""/docs: interactive OpenAPI, from files of our own: a service may run where no CDN is reached.

The page, its files and the document name each other by relative URLs: they work behind a proxy that
strips a prefix from the path. They need no key; the page has a field for the key of its calls.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import FileResponse, HTMLResponse
from starlette.staticfiles import StaticFiles

ASSETS_PATH = "/docs/assets"
_SCRIPT_PATH = f"{ASSETS_PATH}/docs.js"
OPEN_PATHS = (
    "/docs",
    "/openapi.json",
    _SCRIPT_PATH,
    *(
        f"{ASSETS_PATH}/{name}"
        for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
    ),
)
"""What a browser fetches to show the page, before anybody could enter a key."""


def add_docs(app: FastAPI) -> None:
    """Add the page and its assets; the app must have an OpenAPI document."""
    static = files("service.http") / "static"
    page = (static / "docs.html").read_text()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get(_SCRIPT_PATH, include_in_schema=False)
    async def script() -> FileResponse:
        return FileResponse(str(static / "docs.js"), media_type="text/javascript")

    # fastapi_offline carries Swagger UI; only its files are used.
    app.mount(ASSETS_PATH, StaticFiles(directory=str(files("fastapi_offline") / "static")))
