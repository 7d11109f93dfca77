"""The limit of HTTP: a bare ASGI app that parses the body and answers as many bytes as we do.

BENCH_PORT=8001 BENCH_ANSWER_SIZES='{"/predict": 700}' python -m benchmarks.serving.echo
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import orjson
import uvicorn
from starlette.types import Receive, Scope, Send

PORT, SIZES = "BENCH_PORT", "BENCH_ANSWER_SIZES"


class Echo:
    """Parses every body, and answers a blank of a fixed size.

    Args:
        sizes: Bytes of an answer by path.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        # A JSON string of that many bytes, quotes included.
        self._blanks = {path: b'"' + b" " * (size - 2) + b'"' for path, size in sizes.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        chunks, is_more = [], True
        while is_more:
            message = await receive()
            chunks.append(message.get("body", b""))
            is_more = message.get("more_body", False)
        orjson.loads(b"".join(chunks))
        blank = self._blanks[scope["path"]]
        length = (b"content-length", str(len(blank)).encode())
        headers = [(b"content-type", b"application/json"), length]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": blank})


def main() -> None:
    """Serve on the port that the environment names."""
    uvicorn.run(
        Echo(json.loads(os.environ[SIZES])),
        port=int(os.environ[PORT]),
        http="httptools",
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
