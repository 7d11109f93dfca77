"""The former name of the client, for programs that import it; now it is `world_model_client`."""

from world_model_client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
