"""Options of a training run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.checkpoint import Architecture
from models.conformal import HIGHEST_ALPHA, LOWEST_ALPHA
from models.spec import Spec


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one horizon.

    Attributes:
        horizon: Steps rolled out for the loss.
        updates: Number of optimiser updates.
        rows: Windows an update.
        only: Parts of the model that are trained, the rest frozen; all if empty.
        outlier_weight: Weight of what members are taught for wrong states, see `outliers`.
    """

    horizon: int
    updates: int
    rows: int
    only: tuple[str, ...] = ()
    outlier_weight: float = 0.0


CURRICULUM = (
    Stage(1, 2000, 512),
    Stage(4, 800, 256),
    Stage(16, 5000, 256),
    Stage(16, 1500, 512, only=("done_head", "reward_head"), outlier_weight=0.05),
    Stage(1, 1000, 512, only=("reward_head",), outlier_weight=0.05),
)
"""One step first, so that rollouts start from a sane model; then the horizon that is served; then
the heads alone, on rollouts that no longer change. At last the rewards of measured states alone:
wrong states are made of measured ones, and must not be recognised by having been measured."""


_FULL_WINDOWS = 200_000
"""Training windows that the whole of `CURRICULUM` is for."""
_QUICK_SHARE, _QUICK_ROWS = 0.5, 0.25
"""Of updates, and of windows in each: an eighth of the cost. Many small updates teach more than a
few big ones."""
_FEWEST = 100
"""Updates of a stage, if it has so many."""


@dataclass(frozen=True)
class TrainOptions:
    """Arguments of a training run.

    Attributes:
        members: Ensemble size.
        seed: Seeds the split, the weights and the order of windows.
        hidden_dims: Widths; the last one is the latent's.
        activation: "relu", "elu" or "tanh".
        kinematics: Whether members correct an analytic step, where the spec names one.
        stages: The curriculum.
        stride: Steps between the starts of training windows.
        hidden_share: Share of training windows in which far neighbours are hidden.
        learning_rate: Peak of the cosine schedule.
        done_weight: Weight of the termination loss beside the others.
        positive_weight: Weight of terminations in the loss; 1 keeps hazards calibrated.
        validate_every: Updates between validation rollouts.
        false_alarm_rate: Share of harmless calibration windows that the crash threshold may
            call unsafe, unless the guarantee below needs more.
        doubt_rate: Share of harmless calibration windows that may be unknown because their crash
            probability is just below the threshold.
        miss_rate: Largest probability that an episode that ends gets no alarm in time.
        lead_steps: In time means this many steps before the end, or earlier.
        uncertainty_quantile: Share of calibration windows below the uncertainty limit.
        error_quantile: Share of calibration windows with a neighbour below the limit of the
            expected error.
        allow_unguaranteed: Whether a crash threshold and an uncertainty limit are wanted even if
            calibration episodes or windows are too few to support them.
        workers: Members trained at once, one thread each; one at a time on a GPU.
        device: "auto", "cpu" or "cuda".
        is_quick: Whether a rough model in minutes is wanted; see `for_windows`.
    """

    members: int = 5
    seed: int = 0
    hidden_dims: tuple[int, ...] = (256, 256, 64)
    activation: str = "elu"
    kinematics: bool = True
    stages: tuple[Stage, ...] = CURRICULUM
    stride: int = 2
    hidden_share: float = 0.15
    learning_rate: float = 1e-3
    done_weight: float = 5.0
    positive_weight: float = 1.0
    validate_every: int = 250
    false_alarm_rate: float = 0.01
    doubt_rate: float = 0.02
    miss_rate: float = 0.01
    lead_steps: int = 4
    uncertainty_quantile: float = 0.999
    error_quantile: float = 0.99
    allow_unguaranteed: bool = False
    workers: int = 2
    device: str = "auto"
    is_quick: bool = False

    def __post_init__(self) -> None:
        for name in ("members", "stride", "validate_every", "workers", "lead_steps"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not LOWEST_ALPHA <= self.miss_rate <= HIGHEST_ALPHA:
            raise ValueError(
                f"miss_rate must be from {LOWEST_ALPHA} to {HIGHEST_ALPHA}, got {self.miss_rate}"
            )
        for name in ("false_alarm_rate", "uncertainty_quantile", "error_quantile"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if not 0 <= self.doubt_rate < 1:
            raise ValueError(f"doubt_rate must be from 0 to below 1, got {self.doubt_rate}")
        if not self.stages:
            raise ValueError("stages must not be empty")

    def architecture(self, spec: Spec) -> Architecture:
        """Return what members are made of."""
        return Architecture(
            self.hidden_dims,
            self.activation,
            kinematics=self.kinematics and spec.kinematics is not None,
        )

    def for_windows(self, count: int) -> TrainOptions:
        """Return options whose stages fit a number of training windows.

        Few windows are not gone through more often than `CURRICULUM` goes through those that it was
        made for: the cost is in proportion to the data. Quick training takes an eighth of that.
        """
        share, rows = min(1.0, count / _FULL_WINDOWS), 1.0
        if self.is_quick:
            share, rows = share * _QUICK_SHARE, _QUICK_ROWS
        stages = [
            replace(
                stage,
                updates=max(min(stage.updates, _FEWEST), round(stage.updates * share)),
                rows=max(1, round(stage.rows * rows)),
            )
            for stage in self.stages
        ]
        return replace(self, stages=tuple(stages))

    @property
    def horizon(self) -> int:
        """Longest horizon trained."""
        return max(stage.horizon for stage in self.stages)

    @property
    def updates(self) -> int:
        """Updates over all stages."""
        return sum(stage.updates for stage in self.stages)

    @property
    def rows(self) -> int:
        """Rows predicted for the losses of a member."""
        return sum(stage.updates * stage.rows * stage.horizon for stage in self.stages)
