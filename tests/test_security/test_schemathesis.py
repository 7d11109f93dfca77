"""Requests made from the OpenAPI document, valid and invalid: every answer keeps what it says.

Statuses, content types and bodies are those of the document, a failure has the one error body, and
nothing that a caller sends is a fault of the service. The examples are the same in every run.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

from service.app import create_app
from service.http.endpoints import ENDPOINTS, PATHS
from service.telemetry.metrics import Registry
from tests.fakes import engine as fakes
from tests.fakes.engine import ACTIONS, STATE, FakeEngine, error_of

EXAMPLES = 60
Operation = APIOperation[Any, Any, Any, Any]
Request = Case[Any]
POSITIVE, NEGATIVE = GenerationMode
DESCRIBED = [path for path in PATHS if path not in ("/", "/docs", "/openapi.json")]
PREDICTIONS = [endpoint.path for endpoint in ENDPOINTS]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "QUERY", "BREW")
BASE = "http://service"
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
SHORT_S = 1.0
"""Who gives less time than this may get no answer in it."""
DETERMINISTIC = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Service:
    """The app in this process, started, with a loop of its own."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self.app = create_app(fakes.settings(), FakeEngine(), Registry())
        self._lifespan = self.app.router.lifespan_context(self.app)
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url=BASE, headers={"accept": "*/*"}
        )
        self._runner.run(self._lifespan.__aenter__())

    def call(self, method: str, url: str, **given: Any) -> httpx.Response:
        """Return the answer to a request."""
        return self._runner.run(self._client.request(method, url, **given))

    def send(self, case: Request) -> httpx.Response:
        """Return the answer to a generated request."""
        sent = case.as_transport_kwargs(base_url=BASE)
        content = json.dumps(sent["json"]).encode() if "json" in sent else sent.get("data")
        headers = {name: str(value) for name, value in sent["headers"].items()}
        return self.call(
            sent["method"], sent["url"], headers=headers, params=sent["params"], content=content
        )

    def close(self) -> None:
        """End the app and the loop."""
        self._runner.run(self._client.aclose())
        self._runner.run(self._lifespan.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("POISON", "DIVERGE"):  # the fake engine's faults, which examples may hit upon
            patch.setattr(fakes, name, math.nan)
        service = Service()
        yield service
        service.close()


@pytest.fixture(scope="module")
def operations(service: Service) -> dict[str, Operation]:
    schema = schemathesis.openapi.from_dict(json.loads(json.dumps(service.app.openapi())))
    found: dict[str, Operation] = {}
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result  # or the document itself is broken
        found[result.ok().path] = result.ok()
    return found


def check_answer(case: Request, response: httpx.Response) -> None:
    """Fail if an answer is not what the document says, or not what a failure must be."""
    given_s = case.headers.get("X-Request-Timeout-Seconds") if case.headers else None
    if response.status_code == 504:
        assert given_s is not None
        assert float(given_s) < SHORT_S
    else:
        assert response.status_code < 500
    assert response.headers["x-request-id"]
    if response.is_error:
        error_of(response)
    case.validate_response(response, checks=CHECKS)


@pytest.mark.parametrize(
    ("path", "mode"),
    [(path, POSITIVE) for path in DESCRIBED] + [(path, NEGATIVE) for path in PREDICTIONS],
)
def test_answers_are_what_the_document_says(
    service: Service,
    operations: dict[str, Operation],
    path: str,
    mode: GenerationMode,
) -> None:
    seen: Counter[int] = Counter()

    @DETERMINISTIC
    @given(case=operations[path].as_strategy(generation_mode=mode))
    def ask(case: Request) -> None:
        response = service.send(case)
        seen[response.status_code] += 1
        check_answer(case, response)

    ask()

    if mode is POSITIVE:
        assert seen[200] > 0
    else:
        assert seen[422] > EXAMPLES // 3


def test_every_operation_of_the_document_is_asked_for(
    operations: dict[str, Operation],
) -> None:
    assert set(operations) == set(DESCRIBED)


@pytest.mark.parametrize("path", PATHS)
def test_other_methods_are_refused_in_the_one_form(service: Service, path: str) -> None:
    allowed = "POST" if path in PREDICTIONS else "GET"
    for method in METHODS:
        if method != allowed:
            response = service.call(method, path)
            assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")
            assert allowed in response.headers["allow"]
            assert method not in response.headers["allow"]


TOKENS = st.text("abcdefghijklmnopqrstuvwxyz-0123456789!#$%&'*+.^_`|~", min_size=1, max_size=12)
KNOWN_NAMES = """
accept accept-charset accept-encoding authorization connection content-encoding content-length
content-type cookie date expect forwarded from host if-match keep-alive origin range te traceparent
tracestate trailer transfer-encoding upgrade via x-forwarded-for x-http-method-override
x-request-id x-request-timeout-seconds
"""
KNOWN_VALUES = """
0 1 -1 1e400 nan inf 1_0 0x10 gzip br identity chunked close upgrade h2c */* application/json
application/xml text/plain;charset=utf-16 100-continue bytes=0-1
"""
NAMES = st.one_of(TOKENS, st.sampled_from(KNOWN_NAMES.split()))
VALUES = st.one_of(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20).map(str.strip),
    st.sampled_from(KNOWN_VALUES.split()),
)


@settings(DETERMINISTIC, max_examples=4 * EXAMPLES)
@given(path=st.sampled_from(PATHS), headers=st.lists(st.tuples(NAMES, VALUES), max_size=6))
def test_strange_headers_are_no_fault_of_the_service(
    service: Service, path: str, headers: list[tuple[str, str]]
) -> None:
    sent = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    body = {"state": STATE, "action" if path == "/predict" else "actions": ACTIONS}
    if path == "/predict":
        body["action"] = ACTIONS[0]
    method = "POST" if path in PREDICTIONS else "GET"
    content = json.dumps(body).encode() if method == "POST" else b""

    response = service.call(method, path, headers=sent, content=content)

    times = [value for name, value in sent if name == b"x-request-timeout-seconds"]
    assert response.status_code < 500 or (response.status_code == 504 and times)
    if response.is_error:
        error_of(response)


@settings(DETERMINISTIC, max_examples=4 * EXAMPLES)
@given(method=st.sampled_from(METHODS), path=st.text(max_size=60))
def test_strange_paths_are_not_found(service: Service, method: str, path: str) -> None:
    written = quote(path.encode(errors="surrogatepass"), safe="")

    response = service.call(method, f"/~{written}")

    assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
