from __future__ import annotations

from tests.test_service.conftest import (
    _clean_surroundings,
    client,
    engine,
    pytest_asyncio_loop_factories,
)

__all__ = ["_clean_surroundings", "client", "engine", "pytest_asyncio_loop_factories"]
