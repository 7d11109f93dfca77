"""How good trackers are: numbers of their errors, two that were measured, and a draw of others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from world_model_client.scene import COAST_S, FILTER_S

DRAWN = "drawn"
"""In place of a name: a tracker of its own for each episode."""

PERFECT_SHARE = 0.3
"""Of drawn trackers, how many make no errors."""


@dataclass(frozen=True)
class Errors:
    """Standard deviations of one kind of error of a road user's pose.

    Attributes:
        along_m: Along the ego.
        across_m: Across the ego.
        heading_rad: Of headings.
        speed_mps: Of speeds.
    """

    along_m: float = 0.0
    across_m: float = 0.0
    heading_rad: float = 0.0
    speed_mps: float = 0.0

    def as_row(self) -> tuple[float, float, float, float]:
        """Return them in the order of the fields."""
        return self.along_m, self.across_m, self.heading_rad, self.speed_mps


@dataclass(frozen=True)
class Tracker:
    """A tracker's errors, by default none, and the client's filter behind it.

    Attributes:
        white: Drawn anew at each frame.
        correlated: Those that last for `correlation_s`.
        correlation_s: Time after which 1 / e of such an error is left.
        heavy_tails: Whether white and correlated errors, and the ego's, follow Student's t with 3
            degrees of freedom, of the same standard deviation, in place of normal distributions.
        bias: The same throughout an episode, of each track.
        speed_lag_s: By which speeds are late.
        size_share: Standard deviation of sizes, as a share of the true ones, of each track.
        typical_share: Of tracks, how many have the typical size of their kind.
        rate_lag_s: By which accelerations and turn rates are late that the tracker reports; None:
            it reports none, and the client's filter makes them of speeds and headings.
        filter_s: Of that filter, through which places, headings and speeds go, too; 0: differences
            of two samples for rates, and all else as it is reported.
        acceleration_mps2: Standard deviation of reported ones, drawn anew at each frame.
        yaw_rate_radps: Likewise.
        drops_per_s: How often a track loses its road user.
        drop_s: For how long, on average.
        coast_s: How long a track is moved on meanwhile.
        swaps_per_s: How often two road users near each other are taken for each other.
        late_share: Of tracks, how many begin only during the episode.
        ego_speed_mps: Standard deviation of the ego's speed, drawn anew at each frame.
        ego_heading_rad: Likewise of its heading on the road.
        lane_offset_m: Likewise of where it is across the road; both edges move with it.
        edge_m: Likewise of each road edge.
        edge_bias_m: Of each road edge, the same throughout an episode.
        lane_bias_m: By which the lane's centre line lies to the left of the true one throughout
            an episode: the bias itself. The lane offset alone depends on it.
        curvature_per_m: Standard deviation of the lane's curvature, drawn anew at each frame.
        sees_edges: Whether the left road edge is ever in sight, and the right one.
    """

    white: Errors = Errors()
    correlated: Errors = Errors()
    correlation_s: float = 1.0
    heavy_tails: bool = False
    bias: Errors = Errors()
    speed_lag_s: float = 0.0
    size_share: float = 0.0
    typical_share: float = 0.0
    rate_lag_s: float | None = 0.0
    filter_s: float = FILTER_S
    acceleration_mps2: float = 0.0
    yaw_rate_radps: float = 0.0
    drops_per_s: float = 0.0
    drop_s: float = 0.2
    coast_s: float = COAST_S
    swaps_per_s: float = 0.0
    late_share: float = 0.0
    ego_speed_mps: float = 0.0
    ego_heading_rad: float = 0.0
    lane_offset_m: float = 0.0
    edge_m: float = 0.0
    edge_bias_m: float = 0.0
    lane_bias_m: float = 0.0
    curvature_per_m: float = 0.0
    sees_edges: tuple[bool, bool] = (True, True)


TRACKERS = {
    "perfect": Tracker(filter_s=0.0),
    "reference": Tracker(
        white=Errors(0.25, 0.15, 0.03, 0.4),
        rate_lag_s=0.3,
        acceleration_mps2=0.8,
        yaw_rate_radps=0.05,
        ego_speed_mps=0.2,
        edge_m=0.1,
    ),
    # Raw minus smooth tracks of NGSIM US-101. Errors that last for 1.2 s make differences of two
    # samples as wrong as they are there: 1.6 m/s^2 and .12 rad/s.
    "ngsim": Tracker(correlated=Errors(0.07, 0.03, 0.02, 0.29), correlation_s=1.2, rate_lag_s=None),
}
"""Named ones: a perfect one; the synthetic one by which the model of release 0.2 was judged; one
with the errors of recorded traffic."""


def draw_tracker(rng: np.random.Generator) -> Tracker:
    """Draw a tracker, from a perfect one to one with over twice the errors of the named ones.

    The table in docs/training.md gives the reason for each range.
    """
    if rng.random() < PERFECT_SHARE:
        return TRACKERS["perfect"]
    severity = rng.uniform(0.05, 1.0)

    def upto(most: float) -> float:
        return float(severity * rng.uniform(0.0, most))

    def errors(scale: float) -> Errors:
        return Errors(
            along_m=upto(0.5 * scale),
            across_m=upto(0.3 * scale),
            heading_rad=upto(0.06 * scale),
            speed_mps=upto(0.8 * scale),
        )

    whiteness = float(rng.choice([0.0, 0.3, 1.0]))
    reports_rates = rng.random() < 0.3
    tracker = Tracker(
        white=errors(whiteness),
        correlated=errors(1.2 - whiteness),
        correlation_s=float(rng.uniform(0.2, 2.0)),
        heavy_tails=bool(rng.random() < 0.3),
        bias=Errors(along_m=upto(0.3), across_m=upto(0.15), heading_rad=upto(0.02)),
        speed_lag_s=upto(0.3) if rng.random() < 0.5 else 0.0,
        size_share=upto(0.2),
        typical_share=upto(0.5),
        rate_lag_s=upto(0.6) if reports_rates else None,
        filter_s=0.0 if rng.random() < 0.1 else FILTER_S,
        acceleration_mps2=upto(1.6),
        yaw_rate_radps=upto(0.1),
        drops_per_s=upto(0.1),
        drop_s=upto(0.8),
        coast_s=float(rng.choice([0.0, COAST_S])),
        swaps_per_s=upto(0.1),
        late_share=upto(0.2),
        ego_speed_mps=upto(0.4),
        ego_heading_rad=upto(0.05),
        lane_offset_m=upto(0.15),
        edge_m=upto(0.2),
        edge_bias_m=upto(0.3),
    )
    return _with_map(tracker, rng)


def _with_map(tracker: Tracker, rng: np.random.Generator) -> Tracker:
    """Return a tracker with a map whose errors are drawn, independently of its other errors."""
    has_bias, has_kinks = rng.random(2) < (0.5, 0.1)
    unseen, is_left = rng.random(), bool(rng.random() < 0.5)
    sees_edges = (True, True)
    if unseen < 0.1:
        sees_edges = (False, False)
    elif unseen < 0.15:
        sees_edges = (not is_left, is_left)
    return replace(
        tracker,
        lane_bias_m=float(rng.uniform(-0.6, 0.6)) if has_bias else 0.0,
        curvature_per_m=float(rng.uniform(0.0, 0.01 if has_kinks else 0.003)),
        sees_edges=sees_edges,
    )
