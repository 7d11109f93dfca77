"""Old name of `models.network.world_model`, which the specification and users import."""

from models.network.world_model import (
    ACTIVATIONS,
    MAX_LATENT_DIM,
    MIN_LATENT_DIM,
    NORMALISERS,
    WorldModel,
)

__all__ = ["ACTIVATIONS", "MAX_LATENT_DIM", "MIN_LATENT_DIM", "NORMALISERS", "WorldModel"]
