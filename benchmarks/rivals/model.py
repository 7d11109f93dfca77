"""The model that rivals serve: a plain MLP, its rollout, and answers to a batch of requests.

Needs torch and NumPy only: rivals run in environments that know nothing of our packages. Weights
come from the state_dict that the benchmark writes; names are those of our own model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

WEIGHTS = "BENCH_WEIGHTS"
PORT = "BENCH_PORT"
MAX_BATCH = 64
"""Requests that a rival may answer together: as many as the load has connections."""
THRESHOLD = 0.5
HIDDEN_DIMS = (256, 256, 64)
S, A = 34, 3

Body = dict[str, Any]
Floats = NDArray[np.float32]


def _mlp(inputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in HIDDEN_DIMS:
        layers += [nn.Linear(inputs, width), nn.ELU()]
        inputs = width
    return nn.Sequential(*layers)


class PlainModel(nn.Module):
    """One member with plain heads: 206,116 parameters."""

    def __init__(self) -> None:
        super().__init__()
        latent = HIDDEN_DIMS[-1]
        self.encoder = _mlp(S)
        self.dynamics = _mlp(latent + A)
        self.decoder = nn.Linear(latent, S)
        self.reward_head = nn.Sequential(nn.Linear(latent + A, 128), nn.ELU(), nn.Linear(128, 1))
        self.done_head = nn.Sequential(nn.Linear(latent, 64), nn.ELU(), nn.Linear(64, 1))
        for name, width in (("state_mean", S), ("state_scale", S), ("delta_scale", S)):
            self.register_buffer(name, torch.zeros(width))
        for name in ("reward_mean", "reward_scale", "done_scale", "done_shift"):
            self.register_buffer(name, torch.zeros(1))

    state_mean: Tensor
    state_scale: Tensor
    delta_scale: Tensor
    reward_mean: Tensor
    reward_scale: Tensor
    done_scale: Tensor
    done_shift: Tensor

    def forward(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict one step: state [B, S], action [B, A] -> next state, reward [B], done [B]."""
        latent = self.encoder((state - self.state_mean) / self.state_scale)
        latent_action = torch.cat([latent, action], dim=-1)
        next_latent = self.dynamics(latent_action)
        next_state = state + self.delta_scale * self.decoder(next_latent)
        reward = self.reward_mean + self.reward_scale * self.reward_head(latent_action)
        done = torch.sigmoid(self.done_scale * self.done_head(next_latent) + self.done_shift)
        return next_state, reward[:, 0], done[:, 0]

    @torch.inference_mode()
    def rollout(self, states: Floats, actions: Floats) -> tuple[Floats, Floats, Floats]:
        """Predict H steps: [B, S], [B, H, A] -> states [B, H+1, S], rewards, dones [B, H]."""
        state, controls = torch.from_numpy(states), torch.from_numpy(actions)
        visited, rewards, dones = [state], [], []
        for step in range(controls.shape[1]):
            state, reward, done = self(state, controls[:, step])
            visited.append(state)
            rewards.append(reward)
            dones.append(done)
        return (
            torch.stack(visited, 1).numpy(),
            torch.stack(rewards, 1).numpy(),
            torch.stack(dones, 1).numpy(),
        )


def load_model() -> PlainModel:
    """Return the model with the weights that the benchmark names in the environment."""
    model = PlainModel()
    model.load_state_dict(torch.load(os.environ[WEIGHTS], weights_only=True))
    return model.eval()


def outcomes(rewards: Floats, dones: Floats) -> tuple[Floats, Floats]:
    """Return expected returns [B], and P(ended by step k) [B, H]."""
    alive = np.cumprod(1 - dones, axis=-1)
    before = np.concatenate([np.ones_like(alive[:, :1]), alive[:, :-1]], axis=-1)
    return (before * rewards).sum(-1), 1 - alive


def predictions(model: PlainModel, bodies: Sequence[Body]) -> list[Body]:
    """Answer one-step predictions, batched."""
    states = np.array([body["state"] for body in bodies], np.float32)
    actions = np.array([body["action"] for body in bodies], np.float32)
    after, rewards, dones = model.rollout(states, actions[:, None])
    return [
        {"next_state": after[i, 1], "reward": float(rewards[i, 0]), "done": float(dones[i, 0])}
        for i in range(len(bodies))
    ]


def rollouts(model: PlainModel, bodies: Sequence[Body]) -> list[Body]:
    """Answer rollouts of one sequence each and of equal horizon, batched."""
    states, actions = _sequences(bodies)
    after, rewards, dones = model.rollout(states, actions)
    return [
        {"states": after[i], "rewards": rewards[i], "dones": dones[i]} for i in range(len(bodies))
    ]


def plans(model: PlainModel, bodies: Sequence[Body]) -> list[Body]:
    """Answer planners one by one: each brings a batch of sequences itself."""
    return [_plan(model, body) for body in bodies]


def _plan(model: PlainModel, body: Body) -> Body:
    actions = np.array(body["actions"], np.float32)
    states = np.repeat(np.array([body["state"]], np.float32), len(actions), axis=0)
    returns, ended = outcomes(*model.rollout(states, actions)[1:])
    return {"returns": returns, "crash_probability": np.ascontiguousarray(ended[:, -1])}


def safety_checks(model: PlainModel, bodies: Sequence[Body]) -> list[Body]:
    """Answer safety checks of one sequence each and of equal horizon, batched."""
    states, actions = _sequences(bodies)
    _, ended = outcomes(*model.rollout(states, actions)[1:])
    return [
        {
            "verdict": "unsafe" if by_step[-1] >= THRESHOLD else "safe",
            "crash_probability": float(by_step[-1]),
            "crash_probability_by_step": by_step,
            "threshold": THRESHOLD,
        }
        for by_step in ended
    ]


Answers = Callable[[PlainModel, Sequence[Body]], list[Body]]
ANSWERS: dict[str, Answers] = {
    "predict": predictions,
    "rollout": rollouts,
    "plan": plans,
    "safety-check": safety_checks,
}
"""What answers a route. `plan` is never batched further."""


def plain(answer: Body) -> Body:
    """Return an answer with lists in place of arrays, for encoders that know no NumPy."""
    return {k: x.tolist() if isinstance(x, np.ndarray) else x for k, x in answer.items()}


def _sequences(bodies: Sequence[Body]) -> tuple[Floats, Floats]:
    return (
        np.array([body["state"] for body in bodies], np.float32),
        np.array([body["actions"] for body in bodies], np.float32),
    )
