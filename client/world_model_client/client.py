"""Client of the service, sync and async, over httpx. Needs no torch.

    with Client("http://127.0.0.1:8000") as client:
        verdict = client.safety_check(state, actions)

Requests made while a span of OpenTelemetry is active continue its trace.

Failures are the classes of `world_model_client.errors`: the service's own by code,
`UnreachableError` where no answer came, `InvalidInputError` where nothing was sent because it could
not be right.

A call is tried a second time, on a new connection and within the same deadline, where it was not
answered because

- no connection could be made,
- a kept connection ended before the head of an answer (the server had closed it while it was idle),
- the service said `unavailable`: it is starting or shutting down, another instance may not be.

That is harmless even if the first try was computed: predictions change nothing.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import httpx
from numpy.typing import ArrayLike

from world_model_client.errors import ClosedClientError, ServiceError, UnreachableError
from world_model_client.exchange import READINESS, Exchange, place_of
from world_model_client.inputs import Call, address, bearer, seconds
from world_model_client.network import DeadlineTransport, certificates, proxy_for

_LIMITS = httpx.Limits(
    # More threads than this wait for each other: a process may often open 1,024 files only.
    max_connections=200,
    # As many: else a thread closes a surplus connection that another is about to use.
    max_keepalive_connections=200,
    # Servers and proxies of the common kind close idle connections after 5 s (uvicorn, Node) or
    # later; a request must not meet that.
    keepalive_expiry=3.0,
)
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
Transport = TypeVar("Transport", httpx.BaseTransport, httpx.AsyncBaseTransport)
Answer = TypeVar("Answer")


class _Forks:
    """Counts the forks between the first process and this one: what was there before is not ours.

    Connections that a child inherits are its parent's: two processes that read one connection get
    each other's answers.
    """

    count = 0

    @classmethod
    def add(cls) -> None:
        cls.count += 1


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_Forks.add)


class _Calls(ABC, Generic[Http, Transport, Answer]):
    """What both clients are: calls, and the connections that they need."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        transport: Transport | None = None,
        checks_ids: bool = True,
    ) -> None:
        self._base_url = address(base_url)
        self._timeout_s = seconds("timeout_s", timeout_s)
        self._checks_ids = checks_ids
        self._transport: Transport | None = transport
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if api_key is not None:
            headers["authorization"] = bearer(api_key)
        self._options: dict[str, Any] = {"base_url": self._base_url, "headers": headers}
        if transport is None:  # made once: reading the certificates takes longer than a call
            self._context = certificates()
        # By number of forks, and whether its connections are for one request each. Inherited pools
        # stay here untouched: they are the parent's to close, and its event loop's.
        self._pools: dict[tuple[int, bool], Http] = {}
        self._is_closed = False

    def predict(
        self, state: ArrayLike, action: ArrayLike, *, timeout_s: float | None = None
    ) -> Answer:
        """Predict one step: state [S] or [N, S], action [A] or [N, A].

        Args:
            state: Finite numbers.
            action: Finite numbers.
            timeout_s: The service answers within this time or not at all; the call ends at most
                half a second later.

        Raises:
            InvalidInputError: An argument cannot be sent; nothing was.
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        arrays = {"state": (state, (1, 2)), "action": (action, (1, 2))}
        return self._call(Call("/predict", arrays, timeout_s=timeout_s))

    def rollout(
        self,
        state: ArrayLike,
        actions: ArrayLike,
        *,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Predict sequences: state [S] or [K, S], actions [H, A] or [K, H, A].

        Raises:
            InvalidInputError: An argument cannot be sent; nothing was.
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        arrays = {"state": (state, (1, 2)), "actions": (actions, (2, 3))}
        names = {"outputs": outputs}
        return self._call(Call("/rollout", arrays, names=names, timeout_s=timeout_s))

    def safety_check(
        self,
        state: ArrayLike,
        actions: ArrayLike,
        *,
        threshold: float | None = None,
        include: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Judge sequences: state [S], actions [H, A] or [K, H, A].

        Raises:
            InvalidInputError: An argument cannot be sent; nothing was.
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        arrays = {"state": (state, (1, 1)), "actions": (actions, (2, 3))}
        return self._call(
            Call("/safety-check", arrays, threshold, {"include": include}, timeout_s=timeout_s)
        )

    def model(self) -> Answer:
        """Return what is served.

        Raises:
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        return self._call(Call("/model"))

    @abstractmethod
    def _call(self, call: Call) -> Answer:
        """Make a call: send it, maybe once more, and return what came."""

    def _exchange(self, call: Call) -> Exchange:
        return Exchange(call, self._base_url, self._timeout_s, self._checks_ids)

    def _http(self, *, fresh: bool) -> Http:
        """Return this process's connections; with `fresh`, those for one request each.

        Raises:
            ClosedClientError: The client was closed.
        """
        if self._is_closed:
            raise ClosedClientError(
                f"the client of {place_of(self._base_url)} is closed: make another"
            )
        key = (_Forks.count, fresh and self._transport is None)
        if key not in self._pools:
            # Atomic: threads that come here at once end up with the same pool.
            self._pools.setdefault(key, self._opened())
        return self._pools[key]

    @abstractmethod
    def _opened(self) -> Http:
        """Return connections, none of which is made yet."""

    def _closing(self) -> list[Http]:
        """Return what is to be closed: not what a parent still uses."""
        self._is_closed = True
        own = [key for key in list(self._pools) if key[0] == _Forks.count]
        return [self._pools.pop(key) for key in own]


class Client(_Calls[httpx.Client, httpx.BaseTransport, dict[str, Any]]):
    """Blocking client, for any number of threads, and for the children of a process that forks.

    Args:
        base_url: Where the service listens.
        api_key: One of the service's keys, if it has any.
        timeout_s: Longest wait for the answer of a call that brings no `timeout_s`.
        transport: Replaces the network, in tests; the same one after a fork.
        checks_ids: Whether an answer is refused whose X-Request-Id is another request's. Proxies
            that put ids of their own there (Envoy by default) make all answers look like that.

    Raises:
        InvalidInputError: An argument cannot be right.
    """

    def ready(self) -> bool:
        """Tell whether the service takes requests; False if it cannot be reached."""
        try:
            self._call(Call(READINESS))
        except (ServiceError, UnreachableError):
            return False
        return True

    def close(self) -> None:
        """Close the connections."""
        for http in self._closing():
            http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _opened(self) -> httpx.Client:
        transport = self._transport or DeadlineTransport(self._base_url, self._context, _LIMITS)
        return httpx.Client(**self._options, transport=transport)

    def _call(self, call: Call) -> dict[str, Any]:
        exchange = self._exchange(call)
        while not exchange.is_over:
            http = self._http(fresh=exchange.is_retry)
            with exchange.attempt(), http.stream(**exchange.request(exchange.notice)) as response:
                exchange.take_head(response)
                for part in response.iter_bytes():
                    exchange.take_part(part)
                exchange.finish()
        return exchange.answer


class AsyncClient(
    _Calls[httpx.AsyncClient, httpx.AsyncBaseTransport, Coroutine[Any, Any, dict[str, Any]]]
):
    """The same without blocking; for one event loop in each process.

    Args:
        base_url: As for `Client`, like all others.
        api_key: One of the service's keys, if it has any.
        timeout_s: Longest wait for the answer of a call that brings no `timeout_s`.
        transport: Replaces the network, in tests; the same one after a fork.
        checks_ids: Whether an answer is refused whose X-Request-Id is another request's.

    Raises:
        InvalidInputError: An argument cannot be right.
    """

    async def ready(self) -> bool:
        """Tell whether the service takes requests; False if it cannot be reached."""
        try:
            await self._call(Call(READINESS))
        except (ServiceError, UnreachableError):
            return False
        return True

    async def close(self) -> None:
        """Close the connections."""
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
        transport = self._transport or httpx.AsyncHTTPTransport(
            verify=self._context, limits=_LIMITS, proxy=proxy_for(self._base_url)
        )
        return httpx.AsyncClient(**self._options, transport=transport)

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
