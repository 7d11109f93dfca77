"""What is asked: four workloads, questions from held-out episodes, and what the model says to them.

W1 predicts one step. W2 rolls one sequence out. W3 is a planner: one state and many sequences,
returns and crash probabilities back. W4 is a safety check polled on schedule, alone and beside W3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import models
from models.survival import crash_probability, crash_probability_by_step, expected_returns
from service.interface import Prediction

EPISODES = Path(models.__file__).parent / "pretrained" / "episodes"
QUESTIONS = 32
HORIZON = 16
SEQUENCES = 256
POLL_HZ = 50.0
FLOOD_CONNECTIONS = 4
_SEED = 4

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Workload:
    """One kind of request under closed-loop load.

    Attributes:
        name: "W1" and so on.
        kind: What is asked: "predict", "rollout", "plan" or "safety-check".
        connections: Each of these numbers is measured.
        horizon: Steps of a sequence.
        rows: Sequences of a request.
    """

    name: str
    kind: str
    connections: tuple[int, ...]
    horizon: int
    rows: int = 1

    def measure(self, connections: int) -> str:
        """Return the measure's name."""
        return f"{self.name} @ {connections}"


W1 = Workload("W1", "predict", (1, 16, 64), horizon=1)
W2 = Workload("W2", "rollout", (1, 16), horizon=HORIZON)
W3 = Workload("W3", "plan", (1, 4), horizon=HORIZON, rows=SEQUENCES)
CLOSED_LOOP = (W1, W2, W3)
W4 = "W4"
NAMES = (*(workload.name for workload in CLOSED_LOOP), W4)

COMPARED = {
    "predict": ("next_state", "reward", "done"),
    "rollout": ("states", "rewards", "dones"),
    "plan": ("returns", "crash_probability"),
    "safety-check": ("crash_probability", "crash_probability_by_step"),
}
"""Fields of an answer that every candidate must give, by kind."""


@dataclass(frozen=True)
class Question:
    """A state [S] and sequences of actions [K, H, A] that may follow it."""

    state: Floats
    actions: Floats


def read_episodes(folder: Path = EPISODES) -> list[tuple[Floats, Floats]]:
    """Return states [T+1, S] and actions [T, A] of the held-out episodes."""
    read = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [(np.array(x["states"], np.float32), np.array(x["actions"], np.float32)) for x in read]


def make_questions(
    episodes: list[tuple[Floats, Floats]], sequences: int = SEQUENCES
) -> list[Question]:
    """Return different held-out states, each with what was driven then and variations of it."""
    rng = np.random.default_rng(_SEED)
    questions = []
    for i in range(QUESTIONS):
        states, actions = episodes[i % len(episodes)]
        start = int(rng.integers(0, max(1, len(actions) - HORIZON)))
        driven = actions[start : start + HORIZON]
        # An episode may end sooner; its last action is held then.
        driven = np.concatenate([driven, np.repeat(driven[-1:], HORIZON - len(driven), axis=0)])
        noise = rng.normal(0.0, 0.2, (sequences, HORIZON, 3))
        noise[0] = 0.0
        varied = np.clip(driven + noise, [-1.0, 0.0, 0.0], 1.0)
        questions.append(Question(states[start], varied.astype(np.float32)))
    return questions


def asked_rows(kind: str, question: Question) -> tuple[Floats, Floats]:
    """Return the states [K, S] and actions [K, H, A] that a kind of request takes of a question."""
    rows = len(question.actions) if kind == "plan" else 1
    steps = 1 if kind == "predict" else HORIZON
    return np.repeat(question.state[None], rows, axis=0), question.actions[:rows, :steps]


def answer_of(kind: str, prediction: Prediction) -> Mapping[str, Any]:
    """Return the compared fields of the answer that a prediction means."""
    states, rewards, dones = prediction.states, prediction.rewards, prediction.dones
    if kind == "predict":
        return {"next_state": states[0, 1], "reward": rewards[0, 0], "done": dones[0, 0]}
    if kind == "rollout":
        return {"states": states[0], "rewards": rewards[0], "dones": dones[0]}
    if kind == "plan":
        return {
            "returns": expected_returns(rewards, dones),
            "crash_probability": crash_probability(dones),
        }
    return {
        "crash_probability": crash_probability(dones)[0],
        "crash_probability_by_step": crash_probability_by_step(dones)[0],
    }
