"""/docs: interactive OpenAPI, from files of our own: a service may run where no CDN is reached."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

ASSETS_PATH = "/docs/assets"


def add_docs(app: FastAPI) -> None:
    """Add the page and its assets; the app must have an OpenAPI document."""
    openapi_url = app.openapi_url
    assert openapi_url is not None
    # fastapi_offline carries Swagger UI; only its files are used.
    app.mount(ASSETS_PATH, StaticFiles(directory=str(files("fastapi_offline") / "static")))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=openapi_url,
            title=app.title,
            swagger_js_url=f"{ASSETS_PATH}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS_PATH}/swagger-ui.css",
            swagger_favicon_url=f"{ASSETS_PATH}/favicon.png",
        )
