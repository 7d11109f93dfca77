"""Part of the service."""

from service.engine.engine import Engine

__all__ = ["Engine"]
