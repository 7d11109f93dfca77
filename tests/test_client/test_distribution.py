"""The client by itself: what it installs, what it loads, and its names in the service."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import service.client
import service.errors
import world_model_client
import world_model_client.errors

ROOT = Path(__file__).parents[2]


def project(path: str) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / path).read_text())["project"]
    return found


def python(program: str, *options: str) -> str:
    command = [sys.executable, *options, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def needed() -> dict[str, Distribution]:
    """Return what the client's distribution installs beside itself, by name."""
    found: dict[str, Distribution] = {}
    names = list(project("client/pyproject.toml")["dependencies"])
    while names:
        wanted = Requirement(names.pop())
        is_here = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if is_here and wanted.name not in found:
            found[wanted.name] = distribution(wanted.name)
            names += found[wanted.name].requires or []
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what `pip install ./client` would, as links."""
    folder = tmp_path_factory.mktemp("alone")
    tops = {(dist, file.parts[0]) for dist in needed().values() for file in dist.files or ()}
    for dist, top in tops:
        if top != ".." and not (folder / top).exists() and top != "__pycache__":
            (folder / top).symlink_to(str(dist.locate_file(top)))
    (folder / "world_model_client").symlink_to(ROOT / "client/world_model_client")
    return folder


def test_the_client_needs_what_the_service_needs_in_the_same_versions() -> None:
    client, whole = project("client/pyproject.toml"), project("pyproject.toml")

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


def test_the_version_is_that_of_the_service_and_is_stated_in_one_place() -> None:
    given = tomllib.loads((ROOT / "client/pyproject.toml").read_text())

    assert given["project"]["dynamic"] == ["version"]
    source = ROOT / "client" / given["tool"]["hatch"]["version"]["path"]
    assert source == Path(world_model_client.__file__)
    assert f'\n__version__ = "{world_model_client.__version__}"\n' in source.read_text()
    assert world_model_client.__version__ == service.__version__


def test_the_client_installs_less_than_120_megabytes() -> None:
    files = [Path(str(d.locate_file(f))) for d in needed().values() for f in d.files or ()]

    assert len(needed()) > 5
    assert sum(file.stat().st_size for file in files if file.exists()) < 120e6


def test_importing_the_client_loads_numpy_and_nothing_else_that_is_large(alone: Path) -> None:
    """httpx comes with the first client and asyncio with the first of its own; none in a call."""
    program = f"""
import sys, time
sys.path[:] = [path for path in sys.path if "site-packages" not in path] + [{str(alone)!r}]
import numpy, orjson
before, began = set(sys.modules), time.process_time()
from world_model_client import Client, UnreachableError
took_s = time.process_time() - began
small = sys.stdlib_module_names - {{"asyncio", "email", "http", "logging", "ssl", "urllib"}}
print(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}} - small))
print(took_s < 0.25, end=" ")
with Client("http://127.0.0.1:1") as client:
    made = set(sys.modules)
    try:
        client.predict([0.0], [0.0])
    except UnreachableError:
        late = {{name.partition(".")[0] for name in set(sys.modules) - made}}
        print(sorted(late - sys.stdlib_module_names), "httpx" in made, "asyncio" in made)
"""
    said = python(program, "-I", "-S")

    assert said.splitlines() == ["['world_model_client']", "True [] True False"]


def test_the_scene_needs_numpy_alone_and_loads_at_once(alone: Path) -> None:
    program = f"""
import sys, time
sys.path[:] = [path for path in sys.path if "site-packages" not in path] + [{str(alone)!r}]
import numpy
before, began = set(sys.modules), time.process_time()
from world_model_client.scene import StateBuilder
took_s = time.process_time() - began
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}} - {{"numpy"}}
print(sorted(loaded - sys.stdlib_module_names), took_s < 0.15, "asyncio" in sys.modules)
"""
    assert python(program, "-I", "-S") == "['world_model_client'] True False"


@pytest.mark.parametrize("has_own", [False, True], ids=["the service alone", "both"])
def test_the_client_is_there_with_the_service_alone_and_beside_it(
    has_own: bool, alone: Path, tmp_path: Path
) -> None:
    """No file is in both distributions: either can be removed, and the other goes on working."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = wheel["targets"]["wheel"]
    for source, target in wheel["sources"].items():
        shutil.copytree(ROOT / source, tmp_path / target)
    for source, target in wheel["force-include"].items():
        shutil.copy(ROOT / source, tmp_path / target)
    shutil.copy(ROOT / "service/errors.py", tmp_path / "service/errors.py")
    assert not (tmp_path / "world_model_client").exists()
    if has_own:
        shutil.copytree(ROOT / "client/world_model_client", tmp_path / "world_model_client")

    program = f"""
import site, sys
site.addsitedir({str(tmp_path)!r})
import service.errors, world_model_client
assert service.errors.OverloadedError is world_model_client.OverloadedError
print(world_model_client.__file__)
"""
    folder = tmp_path if has_own else tmp_path / "service/bundled"
    assert python(program, "-I", "-S") == str(folder / "world_model_client/__init__.py")


def test_both_distributions_have_the_licence_and_the_types() -> None:
    for path in ("pyproject.toml", "client/pyproject.toml"):
        assert project(path)["license-files"] == ["LICENSE"]
    assert (ROOT / "client/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (ROOT / "client/world_model_client/py.typed").exists()
