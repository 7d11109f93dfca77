"""The client by itself: what it installs, what it loads, and its names in the service."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import service.client
import service.errors
import world_model_client
import world_model_client.errors

ROOT = Path(__file__).parents[2]


def project(path: str) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / path).read_text())["project"]
    return found


def python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_client_needs_what_the_service_needs_in_the_same_versions() -> None:
    client, whole = project("client/pyproject.toml"), project("pyproject.toml")

    assert client["version"] == whole["version"]
    assert client["requires-python"] == whole["requires-python"]
    assert set(client["dependencies"]) <= set(whole["dependencies"])


def test_the_client_works_where_nothing_else_of_the_project_is() -> None:
    names = ["service", "models", "torch", "pydantic", "fastapi", "uvicorn", "opentelemetry"]

    program = """
import sys
sys.modules.update(dict.fromkeys(NAMES))  # importing any of them fails
import httpx
from world_model_client import Client, OverloadedError

body = b'{"error": {"code": "overloaded", "message": "full", "details": []}}'
answer = httpx.MockTransport(lambda request: httpx.Response(429, content=body))
try:
    Client("http://car", transport=answer).predict([1.0], [0.5], timeout_s=1)
except OverloadedError as exc:
    print(exc)
"""
    said = python(program.replace("NAMES", repr(names)))

    assert said == "full"


def test_the_service_loads_of_the_client_only_its_errors() -> None:
    loaded = python(
        "import sys, service.app\n"
        "print([m for m in sys.modules if m.startswith(('httpx', 'world_model_client'))])"
    )

    assert loaded == "['world_model_client.errors', 'world_model_client']"


def test_the_clients_former_name_is_the_same_client() -> None:
    assert service.client.Client is world_model_client.Client
    assert service.client.AsyncClient is world_model_client.AsyncClient


def test_every_exported_name_is_there_and_no_other() -> None:
    assert all(hasattr(world_model_client, name) for name in world_model_client.__all__)
    assert not hasattr(world_model_client, "Server")


def test_the_service_and_the_client_have_one_tree_of_errors() -> None:
    for name in world_model_client.errors.__all__:
        assert getattr(service.errors, name) is getattr(world_model_client.errors, name), name
    kinds = {kind.__name__ for kind in world_model_client.SERVICE_ERRORS}
    assert kinds <= set(world_model_client.__all__)
