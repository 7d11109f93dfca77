"""Ray's cluster for tests; one for all tests of a file, as its start takes long."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.conftest import lacks
from tests.test_ray.running import RayCluster, ray_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Start Ray on three nodes."""
    if find_spec("ray") is None:
        lacks("needs Ray: pip install -c constraints.txt -e '.[ray]'")
    with ray_cluster() as started:
        yield started
