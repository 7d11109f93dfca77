"""GET /: the page that shows what the model predicts, and why.

It is made of files in `static/page/`, without a build step and with nothing from other hosts. The
page holds no secret and needs no key; what it asks for does, as from any other client. All its URLs
are relative: it works behind a proxy that strips a prefix from the path.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from fastapi import FastAPI, Request, Response

_FOLDER = "/page"
_KINDS = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
}
ASSETS = (
    "alerts.js",
    "api.js",
    "birdseye.js",
    "chart.js",
    "chosen.js",
    "dom.js",
    "editor.js",
    "episodes.json",
    "explain.js",
    "fan.js",
    "icon.svg",
    "labels.js",
    "latest.js",
    "layout.js",
    "link.js",
    "live.js",
    "main.js",
    "members.js",
    "metrics.js",
    "motion.js",
    "panel.js",
    "plan.js",
    "questions.js",
    "retry.js",
    "scenes.js",
    "shares.js",
    "snippets.js",
    "style.css",
    "types.js",
    "why.js",
    "whylist.js",
)
"""Names of the files beside `index.html`."""

PAGE_PATHS = ("/", *(f"{_FOLDER}/{name}" for name in ASSETS))
"""Need no key: what a browser fetches before anybody could enter one."""

_HEADERS = {
    "cache-control": "no-cache",  # kept, but asked about: a new release shows at once
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class _File:
    """A file in memory, with the headers of its answers."""

    content: bytes
    headers: dict[str, str]

    def answer(self, request: Request) -> Response:
        """Return the file, or 304 if the browser has this one (RFC 9110, 13.1.2)."""
        known = request.headers.get("if-none-match", "")
        tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
        if tags & {"*", self.headers["etag"]}:
            kept = {name: x for name, x in self.headers.items() if name != "content-type"}
            return Response(status_code=304, headers=kept)
        return Response(self.content, headers=self.headers)


def add_page(app: FastAPI) -> None:
    """Add the page and its files, which are read once."""
    folder = files("service.http") / "static" / "page"

    def read(name: str) -> _File:
        content = (folder / name).read_bytes()
        own = {
            "content-type": _KINDS[name.rpartition(".")[2]],
            "etag": f'"{sha256(content).hexdigest()[:32]}"',
        }
        return _File(content, {**_HEADERS, **own})

    def add(path: str, file: _File) -> None:
        @app.get(path, include_in_schema=False)
        async def asset(request: Request) -> Response:
            return file.answer(request)

    add("/", read("index.html"))
    for name in ASSETS:
        add(f"{_FOLDER}/{name}", read(name))
