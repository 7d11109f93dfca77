"""What the log says at the start: where the service listens, what it serves and guarantees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from service import __version__
from service.interface import ModelInfo

log = structlog.get_logger()


def log_start(checkpoint: Path, address: str, info: ModelInfo, load_s: float) -> None:
    """Log that the service listens, and as what.

    Args:
        checkpoint: Where the model came from.
        address: Host and port as they stand in a URL.
        info: The loaded model.
        load_s: Seconds from start to warm.
    """
    log.info(
        "started",
        url=f"http://{address}",
        service_version=__version__,
        model=info.name,
        version=info.version,
        spec=info.spec.signature,
        device=info.device,
        members=info.members,
        load_s=round(load_s, 3),
        checkpoint=str(checkpoint),
    )
    log_limits(info)


def log_limits(info: ModelInfo) -> None:
    """Say what the crash threshold guarantees, and warn if safety checks cannot answer `safe`."""
    limits, guarantee = info.limits, info.guarantee
    facts: dict[str, Any] = {"crash_threshold": limits.crash_threshold}
    if guarantee is not None:
        facts |= {
            "miss_rate": guarantee.alpha,
            "episodes": guarantee.episodes,
            "episodes_needed": guarantee.episodes_needed,
        }
    if limits.crash_threshold is None:
        _log_missing_threshold(info, facts)
    elif guarantee is None or not guarantee.holds_for(limits.crash_threshold):
        log.warning("the crash threshold guarantees nothing", **facts)
    else:
        log.info("the crash threshold keeps its guarantee", **facts)
    if limits.uncertainty_limit is None or limits.horizon == 0:
        log.warning(
            "no verdict will be safe",
            reason=_why_none_is_safe(info),
            uncertainty_limit=limits.uncertainty_limit,
            evaluated_horizon=limits.horizon,
            members=info.members,
        )


def _log_missing_threshold(info: ModelInfo, facts: dict[str, Any]) -> None:
    refused = info.refused.get("crash_threshold")
    if refused is None:
        log.warning("not calibrated: every safety check answers unknown", **facts)
        return
    guarantee = info.guarantee
    if info.held_members is not None:
        reason = f"it holds for all {info.held_members} members, and {info.members} are served"
    elif guarantee is None:
        reason = "the checkpoint notes no guarantee for it"
    elif guarantee.threshold is None:
        reason = "its episodes are too few for a guarantee, or none was made of them"
    else:
        reason = f"it is above {guarantee.threshold:g}, the highest one that keeps the guarantee"
    log.warning(
        "the crash threshold is refused: every safety check answers unknown",
        reason=reason,
        refused_threshold=refused,
        **facts,
    )


def _why_none_is_safe(info: ModelInfo) -> str:
    reasons = []
    if info.limits.uncertainty_limit is None:
        if info.held_members is not None and info.members > 1:
            reasons.append(f"limits hold for all {info.held_members} members")
        elif info.members == 1:
            reasons.append("one member cannot disagree")
        elif "uncertainty_limit" in info.refused:
            reasons.append("too few calibration windows support the uncertainty limit")
        else:
            reasons.append("the uncertainty limit was never calibrated")
    if info.limits.horizon == 0:
        reasons.append("no horizon was evaluated")
    return ", and ".join(reasons)
