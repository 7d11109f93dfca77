"""The Python client of the world-model service, a distribution of its own.

In: states and actions (numbers, sequences, arrays) for a call of `Client` or `AsyncClient`.
Out: the service's answer as a dictionary, or an exception of `errors`.
May touch: sockets, through httpx, and nothing else. It imports nothing of the service, the models
or torch: it is installed where these are not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from world_model_client import errors
from world_model_client.errors import *  # noqa: F403 (they are listed there)

__version__ = "0.2.0"

_CLIENTS = {"AsyncClient": "async_client", "Client": "client"}

if TYPE_CHECKING:
    from world_model_client.async_client import AsyncClient
    from world_model_client.client import Client
else:

    def __getattr__(name: str) -> Any:
        """Load a client when it is asked for: the service needs the errors, not httpx."""
        if name not in _CLIENTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_CLIENTS[name]}"), name)
        return globals().setdefault(name, found)


__all__ = ["AsyncClient", "Client", "__version__", *errors.__all__]
