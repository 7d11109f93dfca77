"""Ray's cluster for tests; one for all tests of a file, as its start takes long."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import NoReturn

import pytest

from tests.test_ray.running import RayCluster, ray_cluster


def lacks(what: str) -> NoReturn:
    """Skip, as a package is not here; where all must run (`.ci/run`), fail."""
    if os.environ.get("RAY_TESTS_MUST_RUN"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Start Ray on three nodes."""
    if find_spec("ray") is None:
        lacks("needs Ray: pip install -c constraints.txt -e '.[ray]'")
    with ray_cluster() as started:
        yield started
