"""Blocking client of the service, over httpx. Needs no torch.

with Client("http://127.0.0.1:8000") as client:
    verdict = client.safety_check(state, actions)
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from world_model_client.calls import Calls
from world_model_client.errors import NotFoundError, ServiceError, UnreachableError
from world_model_client.inputs import READINESS, Call

if TYPE_CHECKING:
    import httpx

    from world_model_client.exchange import Exchange


class Client(Calls["httpx.Client", "httpx.BaseTransport", dict[str, Any]]):
    """Blocking client, for any number of threads, and for the children of a process that forks.

        with Client("http://127.0.0.1:8000") as client:
            verdict = client.safety_check(state, actions)

    Args:
        base_url: Where the service listens: http://HOST:PORT or https://HOST:PORT, with a path if
            it lies below one.
        api_key: One of the service's keys, if it has any.
        timeout_s: Longest wait in seconds for the answer of a call that brings no `timeout_s`.
        margin_s: Seconds that a call with a `timeout_s` may take beyond it, for the service's own
            answer that it is late. After that, the service is silent: `UnreachableError`.
        transport: Replaces the network, in tests; the same one after a fork.
        checks_ids: Whether an answer is refused whose X-Request-Id is another request's. Proxies
            that put ids of their own there (Envoy by default) make all answers look like that.

    Raises:
        InvalidInputError: An argument cannot be right.
    """

    _sending = "handle_request"
    __aexit__: None = None  # looked for before `__aenter__` is called

    async def __aenter__(self) -> NoReturn:
        raise TypeError("Client is for 'with', its calls without 'await' (or use AsyncClient)")

    def ready(self) -> bool:
        """Tell whether the service takes requests; False if it cannot be reached.

        Raises:
            NotFoundError: The service is there, but not below the path of `base_url`.
        """
        try:
            self._call(Call(READINESS))
        except NotFoundError:
            raise
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
        import httpx

        from world_model_client.network import LIMITS, DeadlineTransport, no_cookies

        transport = self._transport
        if transport is None:
            assert self._context is not None
            transport = DeadlineTransport(self._base_url, self._context, LIMITS)
        return httpx.Client(**self._options, cookies=no_cookies(), transport=transport)

    def _call(self, call: Call) -> dict[str, Any]:
        exchange = self._exchange(call)
        while not exchange.is_over:
            http = self._http(fresh=exchange.is_retry)
            try:
                self._try(exchange, http)
            except RuntimeError as exc:
                if not http.is_closed:
                    raise
                raise self._closed() from exc  # by another thread, since it was looked up
        return exchange.answer

    def _try(self, exchange: Exchange, http: httpx.Client) -> None:
        with exchange.attempt(), http.stream(**exchange.request(exchange.notice)) as response:
            exchange.take_head(response)
            for part in response.iter_bytes():
                exchange.take_part(part)
            exchange.finish()
