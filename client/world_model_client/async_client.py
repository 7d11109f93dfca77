"""Client of the service for asyncio, over httpx. Needs no torch.

async with AsyncClient("http://127.0.0.1:8000") as client:
    verdict = await client.safety_check(state, actions)
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from world_model_client.calls import Calls, Forks
from world_model_client.errors import (
    NotFoundError,
    ServiceError,
    UnreachableError,
    WrongLoopError,
)
from world_model_client.inputs import READINESS, Call

if TYPE_CHECKING:
    import httpx


class AsyncClient(
    Calls["httpx.AsyncClient", "httpx.AsyncBaseTransport", Coroutine[Any, Any, dict[str, Any]]]
):
    """The client to await: the calls of `Client`, for one event loop of asyncio in each process.

        async with AsyncClient("http://127.0.0.1:8000") as client:
            verdict = await client.safety_check(state, actions)

    Args:
        base_url: As for `Client`, like all others.
        api_key: One of the service's keys, if it has any.
        timeout_s: Longest wait in seconds for the answer of a call that brings no `timeout_s`.
        margin_s: Seconds that a call with a `timeout_s` may take beyond it, for the service's own
            answer that it is late. After that, the service is silent: `UnreachableError`.
        transport: Replaces the network, in tests; the same one after a fork.
        checks_ids: Whether an answer is refused whose X-Request-Id is another request's.

    Raises:
        InvalidInputError: An argument cannot be right.
    """

    _sending = "handle_async_request"
    __exit__: None = None  # looked for before `__enter__` is called

    def __enter__(self) -> NoReturn:
        raise TypeError("AsyncClient is for 'async with', its calls for 'await' (or use Client)")

    async def ready(self) -> bool:
        """Tell whether the service takes requests; False if it cannot be reached.

        Raises:
            NotFoundError: The service is there, but not below the path of `base_url`.
        """
        try:
            await self._call(Call(READINESS))
        except NotFoundError:
            raise
        except (ServiceError, UnreachableError):
            return False
        return True

    async def close(self) -> None:
        """Close the connections."""
        if self._pools:
            self._check_loop()  # before anything is taken away
        for http in self._closing():
            await http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _opened(self) -> httpx.AsyncClient:
        import httpx

        from world_model_client.network import LIMITS, no_cookies, proxy_for

        transport = self._transport
        if transport is None:
            assert self._context is not None
            transport = httpx.AsyncHTTPTransport(
                verify=self._context, limits=LIMITS, proxy=proxy_for(self._base_url)
            )
        return httpx.AsyncClient(**self._options, cookies=no_cookies(), transport=transport)

    def _http(self, *, fresh: bool) -> httpx.AsyncClient:
        http = super()._http(fresh=fresh)
        self._check_loop()
        return http

    def _check_loop(self) -> None:
        """Raise where connections are another event loop's, which may be closed.

        Raises:
            WrongLoopError: They are, or asyncio does not run.
        """
        try:
            running = asyncio.get_running_loop()
        except RuntimeError as exc:
            raise WrongLoopError(
                f"the client of {self._place} needs a running loop of asyncio"
            ) from exc
        if self._loops.setdefault(Forks.count, running) is not running:
            raise WrongLoopError(
                f"the client of {self._place} belongs to another event loop: make one in each "
                "(every asyncio.run has a loop of its own)"
            )

    async def _call(self, call: Call) -> dict[str, Any]:
        exchange = self._exchange(call)

        async def notice(event: str, info: dict[str, Any]) -> None:
            exchange.notice(event, info)

        while not exchange.is_over:
            http = self._http(fresh=exchange.is_retry)
            with exchange.attempt():
                async with (
                    asyncio.timeout(exchange.left_s()),
                    http.stream(**exchange.request(notice)) as response,
                ):
                    exchange.take_head(response)
                    async for part in response.aiter_bytes():
                        exchange.take_part(part)
                    exchange.finish()
        return exchange.answer
