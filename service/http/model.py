"""/model: what is served, by what it was judged, and what requests must look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from models.conformal import Guarantee
from models.spec import Feature
from service.interface import ModelInfo


def model_router(info: ModelInfo, *, max_horizon: int, max_rows: int) -> APIRouter:
    """Return the route.

    Args:
        info: The loaded model.
        max_horizon: Most steps of a sequence.
        max_rows: Most sequences of a request.
    """
    router = APIRouter(tags=["model"])
    description = _described(info, max_horizon, max_rows)

    @router.get("/model", summary="What is served?")
    async def model() -> dict[str, Any]:
        return description

    return router


def _described(info: ModelInfo, max_horizon: int, max_rows: int) -> dict[str, Any]:
    limits = info.limits
    low, high = _bounds(limits.state_low), _bounds(limits.state_high)
    state = [
        {**feature, "trained_low": low[i], "trained_high": high[i]}
        for i, feature in enumerate(_features(info.spec.state))
    ]
    return {
        "name": info.name,
        "version": info.version,
        "device": info.device,
        "members": info.members,
        "dims": {"state": info.spec.state_dim, "action": info.spec.action_dim},
        "dt_s": info.spec.dt_s,
        "max_horizon": max_horizon,
        "max_rows": max_rows,
        "features": {"state": state, "action": _features(info.spec.action)},
        "thresholds": {
            "crash_probability": limits.crash_threshold,
            "uncertainty": limits.uncertainty_limit,
            "evaluated_horizon": limits.horizon,
            "guarantee": _promised(info.guarantee, limits.crash_threshold),
        },
        "metrics": dict(info.metrics),
    }


def _promised(guarantee: Guarantee | None, threshold: float | None) -> dict[str, Any] | None:
    if guarantee is None:
        return None
    return {
        "miss_rate": guarantee.alpha,
        "lead_s": guarantee.lead_s,
        "episodes": guarantee.episodes,
        "episodes_needed": guarantee.episodes_needed,
        "holds": guarantee.holds_for(threshold),
    }


def _features(features: Sequence[Feature]) -> list[dict[str, Any]]:
    return [asdict(feature) for feature in features]


def _bounds(values: Any) -> list[float | None]:
    """Return finite bounds as numbers, missing ones as None."""
    return [float(x) if abs(x) != float("inf") else None for x in values]
