"""Train one member: a curriculum of rollout losses, resumable at every validation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from models.network.unroll import unroll
from models.network.world_model import WorldModel
from models.spec import Spec
from training.dataset.windows import Windows
from training.fitting.compiling import training_step
from training.fitting.losses import WindowBatch, outlier_loss, rollout_loss
from training.fitting.normalise import fit_normalisers
from training.fitting.options import Stage, TrainOptions
from training.fitting.outliers import OUTLIER_REWARD_SD, error_shifts, make_outliers, own_side
from training.running.files import whole_file
from training.running.stopping import uninterrupted

STATE = "state.pt"

_VALIDATION_WINDOWS = 4096
_CHUNK_ROWS = 1024
_WARM_UP_UPDATES = 200
_FINAL_RATE_SHARE = 0.01
_CLIP_NORM = 5.0


@dataclass
class TrainingState:
    """Where a member's training stands; what a resumed run goes on from."""

    update: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class MemberTrainer:
    """Trains one member in its own folder.

    Args:
        index: Number of the member; with the options' seed it decides weights and order.
        spec: Meaning of the features.
        options: The run's.
        train: Training windows.
        validation: Validation windows.
        folder: Holds `state.pt` (to resume) and TensorBoard logs.
        on_update: Called with the number of updates done, after each and at the start.
    """

    def __init__(
        self,
        index: int,
        spec: Spec,
        options: TrainOptions,
        train: Windows,
        validation: Windows,
        folder: Path,
        on_update: Callable[[int], object] = lambda done: None,
    ) -> None:
        self.index = index
        self.spec = spec
        self.options = options
        self.train_windows = train
        self.device = choose_device(options.device)
        self.folder = folder
        self.on_update = on_update
        self.stages = [stage for stage in options.stages for _ in range(stage.updates)]
        self.rng = np.random.default_rng((options.seed, index))
        torch.manual_seed(options.seed * 1000 + index)
        self.model = options.architecture(spec).build(spec)
        normalisers = fit_normalisers(train, spec, self.model, options.seed)
        normalisers.apply(self.model)
        self.model.to(self.device)
        self.step = training_step(self.model, options.rows)
        self.change_scale = torch.as_tensor(normalisers.change_scale, device=self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.learning_rate)
        self.state = TrainingState()
        self._reward_shifts: NDArray[np.float32] | None = None  # [N] of the training windows
        rows = np.random.default_rng(options.seed).permutation(len(validation))
        self.validation = validation.take(np.sort(rows[:_VALIDATION_WINDOWS]))

    def run(self) -> WorldModel:
        """Train to the end, or resume and train to the end; return the model.

        Raises:
            KeyboardInterrupt: Interrupted; the state was saved first.
        """
        self._resume()
        self.on_update(self.state.update)
        self.folder.mkdir(parents=True, exist_ok=True)
        with SummaryWriter(str(self.folder / "tensorboard")) as writer:
            try:
                while self._validated < self.options.updates:
                    self._train_stretch(writer)
            except KeyboardInterrupt:
                self._save()
                raise
        return self.model

    @property
    def _validated(self) -> int:
        """The update at which validation was last."""
        return int(self.state.history[-1]["update"]) if self.state.history else 0

    def _train_stretch(self, writer: SummaryWriter) -> None:
        """Train up to the next validation, validate, save."""
        sums: dict[str, float] = {}
        first = self.state.update
        stop = min(self._validated + self.options.validate_every, self.options.updates)
        for update in range(first, stop):
            self._find_reward_shifts(self.stages[update])
            # Stopped between updates, or weights would be saved that are half updated.
            with uninterrupted():
                losses = self._update(update)
                self.state.update = update + 1
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            self.on_update(self.state.update)
        entry = {f"train_{name}": total / (stop - first) for name, total in sums.items()}
        entry |= {f"validation_{name}": x for name, x in self._validate().items()}
        for name, mean in entry.items():
            writer.add_scalar(name, mean, stop)
        self.state.history.append({"update": stop, **entry})
        self._save()

    def _update(self, update: int) -> dict[str, Tensor]:
        stage = self.stages[update]
        rate = self.options.learning_rate * self._schedule(update)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not stage.only or name.startswith(stage.only))
        rows = np.sort(self.rng.integers(len(self.train_windows), size=stage.rows))
        batch = to_batch(self.train_windows.take(rows), stage.horizon, self.device)
        shifts = self._reward_shifts if _teaches_errors(stage) else None
        losses = rollout_loss(
            self.model,
            batch,
            self.change_scale[: stage.horizon],
            positive_weight=self.options.positive_weight,
            done_weight=self.options.done_weight,
            reward_shift=None if shifts is None else torch.tensor(shifts[rows], device=self.device),
            step=self.step,
        )
        if stage.outlier_weight:
            losses["outliers"] = self._outlier_loss(batch)
            losses["total"] = losses["total"] + stage.outlier_weight * losses["outliers"]
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM)
        self.optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    def _outlier_loss(self, batch: WindowBatch) -> Tensor:
        """Teach this member its own reward of wrong states, made of the batch's first ones."""
        wrong = make_outliers(batch.states[:, 0].cpu().numpy(), self.spec, self.rng)
        reward_sd = OUTLIER_REWARD_SD * own_side(self.index, self.options.members)
        states = torch.as_tensor(wrong, device=self.device)
        actions = batch.actions[:, 0]
        return outlier_loss(self.model, states, actions, reward_sd, step=self.step)

    def _find_reward_shifts(self, stage: Stage) -> None:
        """Find how far this member's rewards are to be off, once its errors do not change any more.

        Takes a minute or more of many windows: not within an update, where signals wait.
        """
        if self._reward_shifts is None and _teaches_errors(stage):
            errors = rollout_errors(self.model, self.train_windows, self.spec, self.device)
            side = own_side(self.index, self.options.members)
            self._reward_shifts = error_shifts(errors, side).astype(np.float32)

    def _schedule(self, update: int) -> float:
        """Return the share of the peak learning rate: linear warm-up, then a cosine to 1 %.

        Stages in a row that train the same parts share a schedule.
        """
        only = self.stages[update].only
        begin = end = update
        while begin > 0 and self.stages[begin - 1].only == only:
            begin -= 1
        while end < len(self.stages) and self.stages[end].only == only:
            end += 1
        warm_up = min(1.0, (update - begin + 1) / _WARM_UP_UPDATES)
        cosine = 0.5 * (1 + math.cos(math.pi * (update - begin) / (end - begin)))
        return warm_up * (_FINAL_RATE_SHARE + (1 - _FINAL_RATE_SHARE) * cosine)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Return mean losses of full-horizon rollouts."""
        sums: dict[str, float] = {}
        count = len(self.validation)
        for start in range(0, count, _CHUNK_ROWS):
            chunk = self.validation.take(slice(start, start + _CHUNK_ROWS))
            batch = to_batch(chunk, self.options.horizon, self.device)
            losses = rollout_loss(
                self.model,
                batch,
                self.change_scale,
                positive_weight=self.options.positive_weight,
                done_weight=self.options.done_weight,
            )
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(chunk) / count
        return sums

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.bit_generator.state,
            "progress": vars(self.state),
        }
        with whole_file(self.folder / STATE) as path:
            torch.save(state, path)

    def _resume(self) -> None:
        path = self.folder / STATE
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.bit_generator.state = state["rng"]
        self.state = TrainingState(**state["progress"])


def _teaches_errors(stage: Stage) -> bool:
    """Return whether a stage leaves alone what predicts states, and teaches members to disagree."""
    return bool(stage.only) and stage.outlier_weight > 0


@torch.no_grad()
def rollout_errors(
    model: WorldModel, windows: Windows, spec: Spec, device: torch.device
) -> NDArray[np.float64]:
    """Return how far predictions of N windows are off in the end [N].

    The end is that of what was recorded and goes on. With a geometry the error is the mean distance
    of neighbours from where they were, in m; without, that of all features, root mean square, in
    standard deviations. 0 where there is nothing to compare.
    """
    errors = np.zeros(len(windows))
    for start in range(0, len(windows), _CHUNK_ROWS):
        part = windows.take(slice(start, start + _CHUNK_ROWS))
        batch = to_batch(part, part.horizon, device)
        predicted = unroll(model.predict, batch.states[:, 0], batch.actions)[0]
        steps = (batch.valid & ~batch.terminated).sum(1)
        picked = (torch.arange(len(steps), device=device), steps)
        error = end_errors(model, predicted[picked], batch.states[picked], spec)
        errors[start : start + len(part)] = torch.where(steps > 0, error, 0.0).cpu().numpy()
    return errors


def end_errors(model: WorldModel, predicted: Tensor, true: Tensor, spec: Spec) -> Tensor:
    """Return the errors of states [B, S], see `rollout_errors`."""
    slots = spec.geometry.slots if spec.geometry is not None else ()
    if not slots:
        return ((predicted - true) / model.state_scale).square().mean(-1).sqrt()
    gates = [spec.state_index(slot.gate) for slot in slots]
    least = true.new_tensor([0.5 if slot.has_presence else 0.0 for slot in slots])
    is_there = true[:, gates] > least
    off = [(predicted - true)[:, [spec.state_index(x) for x in (s.dx, s.dy)]] for s in slots]
    distance: Tensor = torch.linalg.vector_norm(torch.stack(off, 1), dim=-1)
    return (distance * is_there).sum(1) / is_there.sum(1).clamp_min(1)


def updates_saved(path: Path) -> int:
    """Return how many updates the state of a member holds; 0 if there is none."""
    if not path.exists():
        return 0
    return int(torch.load(path, map_location="cpu", weights_only=True)["progress"]["update"])


def choose_device(device: str) -> torch.device:
    """Return the device that a setting names; "auto" is CUDA if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def to_batch(windows: Windows, horizon: int, device: torch.device) -> WindowBatch:
    """Return the first `horizon` steps of windows as tensors."""

    def steps(values: NDArray[Any], count: int) -> Tensor:
        return torch.tensor(values[:, :count], device=device)

    return WindowBatch(
        states=steps(windows.states, horizon + 1),
        actions=steps(windows.actions, horizon),
        rewards=steps(windows.rewards, horizon),
        terminated=steps(windows.terminated, horizon),
        valid=steps(windows.valid, horizon),
    )
