"""From an attribution to the JSON fields of a safety check's answer."""

from __future__ import annotations

from typing import Any

from models.spec import Spec
from service.interface import Attribution


def attribution_fields(attribution: Attribution, spec: Spec) -> dict[str, Any]:
    """Return an attribution as JSON fields; numbers that are not finite become null there.

    Args:
        attribution: Of one sequence.
        spec: Names its features.
    """
    a = attribution
    state = [
        {
            "name": feature.name,
            "unit": feature.unit,
            "baseline": a.baseline_state[i],
            "contribution": a.state[i],
            "gradient": a.state_gradients[i],
            "spread": a.state_spreads[i],
            "lower": {"value": lower[0], "crash_probability": lower[1]},
            "higher": {"value": higher[0], "crash_probability": higher[1]},
        }
        for i, (feature, (lower, higher)) in enumerate(
            zip(spec.state, a.state_changed, strict=True)
        )
    ]
    action = [
        {
            "name": feature.name,
            "unit": feature.unit,
            "baseline": a.baseline_action[i],
            "contribution": a.actions[:, i].sum(),
            "contribution_by_step": a.actions[:, i].tolist(),
            "gradient_by_step": a.action_gradients[:, i].tolist(),
            "spread": a.action_spreads[i],
            "lower": {"crash_probability": a.action_changed[i, 0]},
            "higher": {"crash_probability": a.action_changed[i, 1]},
        }
        for i, feature in enumerate(spec.action)
    ]
    return {
        "baseline": a.baseline,
        "crash_probability": a.crash_probability,
        "baseline_crash_probability": a.baseline_probability,
        "residual": a.residual,
        "groups": [
            {
                "name": group.name,
                "contribution": group.contribution,
                "crash_probability_without": group.without,
            }
            for group in a.groups
        ],
        "state": state,
        "action": action,
        "contribution_by_step": a.actions.sum(axis=1).tolist(),
    }
