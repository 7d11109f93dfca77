"""Client of the service, sync and async, over httpx. Needs no torch.

    with Client("http://127.0.0.1:8000") as client:
        verdict = client.safety_check(state, actions)

Requests made while a span of OpenTelemetry is active continue its trace.

Failures are the classes of `service.errors`: the service's own by code, `UnreachableError` where
no answer came.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
import orjson
from numpy.typing import ArrayLike

from service.errors import (
    SERVICE_ERRORS,
    EngineError,
    OverloadedError,
    ServiceError,
    UnreachableError,
)

_BY_CODE = {error.code: error for error in SERVICE_ERRORS}


class _Calls:
    """What both clients share: requests in, answers or errors out."""

    @staticmethod
    def _options(api_key: str | None, timeout_s: float) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        return {"headers": headers, "timeout": timeout_s}

    @staticmethod
    def _body(**fields: Any) -> bytes:
        given = {name: value for name, value in fields.items() if value is not None}
        return orjson.dumps(given, option=orjson.OPT_SERIALIZE_NUMPY)

    @staticmethod
    def _headers(timeout_s: float | None) -> dict[str, str]:
        headers = {} if timeout_s is None else {"X-Request-Timeout-Seconds": str(timeout_s)}
        # Where nobody has imported OpenTelemetry, no span is active; then it need not be there.
        if "opentelemetry.trace" in sys.modules:
            from service.tracing import outgoing

            headers.update(outgoing())
        return headers

    @staticmethod
    def _answer(response: httpx.Response) -> dict[str, Any]:
        """Return the answer's fields.

        Raises:
            ServiceError: The service refused or failed.
            UnreachableError: What answered is not the service.
        """
        try:
            fields = orjson.loads(response.content)
        except orjson.JSONDecodeError as exc:
            raise UnreachableError(f"{response.url} answered {response.status_code}") from exc
        if response.status_code == 200:
            return dict(fields)
        raise _error(response, fields)


def _error(response: httpx.Response, fields: Any) -> Exception:
    try:
        code, message, details = (fields["error"][x] for x in ("code", "message", "details"))
    except (KeyError, TypeError):
        return UnreachableError(f"{response.url} answered {response.status_code}")
    kind: type[ServiceError] = _BY_CODE.get(code, EngineError)
    if kind is OverloadedError:
        retry_after_s = float(response.headers.get("retry-after", "1"))
        return OverloadedError(message, details, retry_after_s=retry_after_s)
    return kind(message, details)


def _numbers(values: ArrayLike) -> Any:
    """Return an array that JSON keeps bit for bit: float32 stays float32."""
    array = np.ascontiguousarray(values)
    return array if array.dtype == np.float32 else array.astype(np.float64)


class Client(_Calls):
    """Blocking client; one connection pool, usable from many threads.

    Args:
        base_url: Where the service listens.
        api_key: One of the service's keys, if it has any.
        timeout_s: Longest wait for an answer.
        transport: Replaces the network, in tests.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        options = self._options(api_key, timeout_s)
        self._http = httpx.Client(base_url=base_url, transport=transport, **options)

    def predict(
        self, state: ArrayLike, action: ArrayLike, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Predict one step: state [S] or [N, S], action [A] or [N, A].

        Raises:
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        body = self._body(state=_numbers(state), action=_numbers(action))
        return self._call("POST", "/predict", body, timeout_s)

    def rollout(
        self,
        state: ArrayLike,
        actions: ArrayLike,
        *,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Predict sequences: state [S] or [K, S], actions [H, A] or [K, H, A].

        Raises:
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        body = self._body(state=_numbers(state), actions=_numbers(actions), outputs=outputs)
        return self._call("POST", "/rollout", body, timeout_s)

    def safety_check(
        self,
        state: ArrayLike,
        actions: ArrayLike,
        *,
        threshold: float | None = None,
        include: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Judge sequences: state [S], actions [H, A] or [K, H, A].

        Raises:
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        body = self._body(
            state=_numbers(state), actions=_numbers(actions), threshold=threshold, include=include
        )
        return self._call("POST", "/safety-check", body, timeout_s)

    def model(self) -> dict[str, Any]:
        """Return what is served.

        Raises:
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        return self._call("GET", "/model")

    def ready(self) -> bool:
        """Tell whether the service takes requests; False if it cannot be reached."""
        try:
            self._call("GET", "/readyz")
        except (ServiceError, UnreachableError):
            return False
        return True

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(
        self, method: str, path: str, body: bytes | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        try:
            response = self._http.request(
                method, path, content=body, headers=self._headers(timeout_s)
            )
        except httpx.TransportError as exc:
            raise UnreachableError(f"no answer from {self._http.base_url}: {exc}") from exc
        return self._answer(response)


class AsyncClient(_Calls):
    """The same without blocking; for one event loop.

    Args:
        base_url: Where the service listens.
        api_key: One of the service's keys, if it has any.
        timeout_s: Longest wait for an answer.
        transport: Replaces the network, in tests.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        options = self._options(api_key, timeout_s)
        self._http = httpx.AsyncClient(base_url=base_url, transport=transport, **options)

    async def predict(
        self, state: ArrayLike, action: ArrayLike, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Predict one step; as `Client.predict`."""
        body = self._body(state=_numbers(state), action=_numbers(action))
        return await self._call("POST", "/predict", body, timeout_s)

    async def rollout(
        self,
        state: ArrayLike,
        actions: ArrayLike,
        *,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Predict sequences; as `Client.rollout`."""
        body = self._body(state=_numbers(state), actions=_numbers(actions), outputs=outputs)
        return await self._call("POST", "/rollout", body, timeout_s)

    async def safety_check(
        self,
        state: ArrayLike,
        actions: ArrayLike,
        *,
        threshold: float | None = None,
        include: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Judge sequences; as `Client.safety_check`."""
        body = self._body(
            state=_numbers(state), actions=_numbers(actions), threshold=threshold, include=include
        )
        return await self._call("POST", "/safety-check", body, timeout_s)

    async def model(self) -> dict[str, Any]:
        """Return what is served; as `Client.model`."""
        return await self._call("GET", "/model")

    async def ready(self) -> bool:
        """Tell whether the service takes requests; False if it cannot be reached."""
        try:
            await self._call("GET", "/readyz")
        except (ServiceError, UnreachableError):
            return False
        return True

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _call(
        self, method: str, path: str, body: bytes | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        try:
            response = await self._http.request(
                method, path, content=body, headers=self._headers(timeout_s)
            )
        except httpx.TransportError as exc:
            raise UnreachableError(f"no answer from {self._http.base_url}: {exc}") from exc
        return self._answer(response)
