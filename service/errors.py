"""Every error of the service: those that it answers with, and `StartupError`.

The tree is drawn in `world_model_client.errors`: the client raises the same classes, and must not
import the service.
"""

from world_model_client.errors import *  # noqa: F403 (they are listed there)
from world_model_client.errors import FIELD_BYTES as FIELD_BYTES
from world_model_client.errors import MAX_DETAILS as MAX_DETAILS
from world_model_client.errors import Detail as Detail
from world_model_client.errors import WorldModelError
from world_model_client.errors import escaped as escaped
from world_model_client.errors import printable as printable


class StartupError(WorldModelError):
    """The service cannot start; the message is one sentence for the person who started it."""
