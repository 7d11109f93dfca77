"""The Python client of the world-model service, a distribution of its own.

In: states and actions (numbers, sequences, arrays) for a call of `Client` or `AsyncClient`.
Out: the service's answer as a dictionary, or an exception of `errors`.
May touch: sockets, through httpx, and nothing else. It imports nothing of the service, the models
or torch: it is installed where these are not.
"""

from typing import TYPE_CHECKING, Any

from world_model_client import errors
from world_model_client.errors import *  # noqa: F403 (they are listed there)

if TYPE_CHECKING:
    from world_model_client.client import AsyncClient, Client
else:

    def __getattr__(name: str) -> Any:
        """Load the clients when they are asked for: the service needs the errors, not httpx."""
        if name not in ("AsyncClient", "Client"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from world_model_client import client

        return getattr(client, name)


__all__ = ["AsyncClient", "Client", *errors.__all__]
