"""How far a model can be taken at its word: wrong states and its guarantee, as Markdown."""

from __future__ import annotations

from typing import Any

from training.evaluation.tables import corruption_table, number, ranged, table


def corruption_section(wrong: dict[str, Any] | None) -> list[str]:
    """Return whether wrong states are noticed; nothing where they were not tried."""
    if wrong is None:
        return []
    impossible, plausible = wrong["impossible"], wrong["plausible"]
    return [
        f"{wrong['windows']} test states made wrong in {impossible['corruptions']} ways that leave "
        f"impossible states: AUROC of disagreement against clean ones "
        f"{ranged(impossible['auroc'], impossible['interval'], 3)} over all, at least 0.95 in "
        f"{impossible['noticed']} of the ways, {number(impossible['lowest_auroc'])} at the lowest. "
        f"{number(impossible['unknown'])} of them get `unknown`, {number(impossible['safe'])} "
        f"`safe`. In {plausible['corruptions']} ways (*) that may leave a real state: "
        f"{ranged(plausible['auroc'], plausible['interval'], 3)}, `unknown` "
        f"{number(plausible['unknown'])}, `safe` {number(plausible['safe'])}. Physics can tell "
        "where somebody overlaps another or goes the ego's way beside the road, and nobody did "
        "before.\n",
        corruption_table(wrong),
    ]


def guarantee_section(metrics: dict[str, Any]) -> list[str]:
    """Return what the conformal guarantee says and what happened; nothing without one."""
    guarantee = metrics["guarantee"]
    if guarantee is None:
        return []
    unseen = (metrics["unseen"] or {}).get("guarantee")
    rows = [
        [
            name,
            str(realised["episodes"]),
            *(
                f"{ranged(realised[kind]['missed'], realised[kind]['interval'])}"
                for kind in ("guaranteed", "served")
            ),
        ]
        for name, realised in (("test", guarantee), ("unseen", unseen))
        if realised is not None
    ]
    guaranteed, served = (guarantee[kind]["threshold"] for kind in ("guaranteed", "served"))
    return [
        "### Guarantee\n",
        f"An episode that ends gets no alarm {guarantee['lead_s']:g} s before or earlier with "
        f"probability at most {guarantee['alpha']:g}: split conformal prediction on "
        f"{guarantee['calibration_episodes']} calibration episodes that end. It holds for drives "
        "like those, hence not for unseen roads. Missed episodes:\n",
        table(
            (
                "part",
                "episodes",
                f"at the guarantee's threshold {guaranteed:.4g}",
                f"at the threshold served, {served:.4g}",
            ),
            rows,
        ),
    ]
