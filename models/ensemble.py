"""Old name of `models.network.ensemble`, which users import."""

from models.network.ensemble import EnsembleRollout, EnsembleStep, WorldModelEnsemble

__all__ = ["EnsembleRollout", "EnsembleStep", "WorldModelEnsemble"]
