"""The JSON contract as pydantic models: what OpenAPI shows, with a model's own dims and ranges.

The hot path does not go through them (`service.http.reading.bodies` does the same in one NumPy
pass); a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from models.spec import Feature, Spec
from service.http.reading.bodies import DEFAULT_OUTPUTS, Include, Output
from service.http.reading.diagnosis import FLOAT32_MAX
from service.http.reading.walk import MOST_NAMES


class Body(BaseModel):
    """What all request bodies have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class _PairedBody(Body):
    """A body whose states and actions must come in equal numbers, or one of them bare."""

    @model_validator(mode="after")
    def _rows_match(self) -> Self:
        actions = getattr(self, "actions", None)
        action_rows = _rows(getattr(self, "action", actions), 2 if actions is None else 3)
        state_rows = _rows(getattr(self, "state", None), 2)
        if None not in (state_rows, action_rows) and state_rows != action_rows:
            raise ValueError(f"{action_rows} action rows for {state_rows} states")
        return self

    @model_validator(mode="after")
    def _sequences_are_equally_long(self) -> Self:
        actions = getattr(self, "actions", None)
        if _rows(actions, 3) is not None and len({len(x) for x in actions or ()}) > 1:
            raise ValueError("sequences have different numbers of steps")
        return self


class Reason(BaseModel):
    """A rule of the safety check that fired."""

    rule: str = Field(description="Stable name of the rule.", examples=["crash_probability"])
    message: str = Field(description="What it saw, for a person.")


class Verdict(BaseModel):
    """Result of a safety check of one action sequence."""

    verdict: Literal["safe", "unsafe", "unknown"] = Field(
        description="`unknown` wherever the model cannot be trusted: treat it as not safe."
    )
    crash_probability: float | None = Field(
        description="P(crash or off-road within the sequence); null if not finite."
    )
    crash_probability_by_step: list[float | None] = Field(
        description="The same up to each step; H numbers."
    )
    time_to_crash_s: float | None = Field(
        description="End of the step at which the probability reaches the threshold, else null."
    )
    uncertainty: float | None = Field(description="Disagreement of the ensemble.")
    threshold: float | None = Field(description="Crash probability judged by.")
    reasons: list[Reason] = Field(description="The rules that fired; empty if safe.")
    horizon_s: float = Field(description="Length of the sequence in seconds.")
    trajectory: list[list[float | None]] | None = Field(
        default=None, description="[H+1][S], if included."
    )


class SafetyCheckAnswer(Verdict):
    """Answer of /safety-check to one sequence."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str


class CandidatesAnswer(BaseModel):
    """Answer of /safety-check to K sequences."""

    model_config = ConfigDict(protected_namespaces=())

    candidates: list[Verdict] = Field(description="One a sequence, in order.")
    best: int = Field(description="Index of the one with the lowest risk.")
    model_version: str


class PredictAnswer(BaseModel):
    """Answer of /predict."""

    model_config = ConfigDict(protected_namespaces=())

    next_state: list[float] | list[list[float]] = Field(description="[S] or [N][S].")
    reward: float | list[float]
    done: float | list[float] = Field(description="P(the episode ends at this step).")
    uncertainty: float | list[float] = Field(description="Disagreement of the ensemble.")
    model_version: str = Field(description="Hash of all that decides the answer.")


class RolloutAnswer(BaseModel):
    """Answer of /rollout: the outputs asked for."""

    model_config = ConfigDict(protected_namespaces=())

    states: list[list[float]] | list[list[list[float]]] | None = Field(
        default=None, description="[H+1][S] or [K][H+1][S], the start included."
    )
    rewards: list[float] | list[list[float]] | None = Field(
        default=None, description="[H] or [K][H]."
    )
    dones: list[float] | list[list[float]] | None = Field(
        default=None, description="[H] or [K][H], P(ends at that step | alive before it)."
    )
    returns: float | list[float] | None = Field(
        default=None, description="Expected sum of rewards; a step counts if alive before it."
    )
    crash_probability: float | list[float] | None = None
    uncertainty: float | list[float] | None = None
    final_state: list[float] | list[list[float]] | None = None
    model_version: str


class ErrorDetail(BaseModel):
    """What is wrong with one field."""

    field: str = Field(examples=["actions[3][1][2]"])
    problem: str = Field(examples=["brake is 1.5"])
    allowed: str | None = Field(default=None, examples=["0 to 1"])


class ErrorContent(BaseModel):
    """Code, sentence and details of a failure."""

    code: str = Field(examples=["invalid_request"])
    message: str
    details: list[ErrorDetail] = Field(description="At most 16.")


class ErrorAnswer(BaseModel):
    """Body of every failure."""

    error: ErrorContent


@dataclass(frozen=True)
class Contract:
    """Request bodies for one loaded model."""

    predict: type[BaseModel]
    rollout: type[BaseModel]
    safety_check: type[BaseModel]


def contract_for(spec: Spec, max_horizon: int, max_rows: int) -> Contract:
    """Return the request bodies with a model's dims and ranges.

    Args:
        spec: The model's features.
        max_horizon: Most steps of a sequence.
        max_rows: Most sequences of a request.
    """
    state: Any = _vector(spec.state, is_ranged=False)
    action: Any = _vector(spec.action, is_ranged=True)
    states: Any = Annotated[list[state], Field(min_length=1, max_length=max_rows)]
    row_actions: Any = Annotated[list[action], Field(min_length=1, max_length=max_rows)]
    sequence: Any = Annotated[list[action], Field(min_length=1, max_length=max_horizon)]
    sequences: Any = Annotated[list[sequence], Field(min_length=1, max_length=max_rows)]

    one_state, one_action = _example(spec.state), _example(spec.action)
    state_field = Field(
        description=f"[{spec.state_dim}] or [K][{spec.state_dim}] numbers; a bare state serves "
        "all action rows.",
        examples=[one_state],
    )
    actions_field = Field(
        description=f"[H][{spec.action_dim}] or [K][H][{spec.action_dim}] numbers.",
        examples=[[one_action] * 2],
    )
    names = Field(min_length=1, max_length=MOST_NAMES)
    probability: Any = Annotated[float, Field(ge=0, le=1)]
    return Contract(
        predict=create_model(
            "PredictRequest",
            __base__=_PairedBody,
            state=(state | states, state_field),
            action=(action | row_actions, Field(examples=[one_action])),
        ),
        rollout=create_model(
            "RolloutRequest",
            __base__=_PairedBody,
            state=(state | states, state_field),
            actions=(sequence | sequences, actions_field),
            outputs=(
                Annotated[list[Output], names],
                Field(default=list(DEFAULT_OUTPUTS), description="What to answer."),
            ),
        ),
        safety_check=create_model(
            "SafetyCheckRequest",
            __base__=_PairedBody,
            state=(state, Field(examples=[one_state])),
            actions=(sequence | sequences, actions_field),
            threshold=(
                probability,
                Field(default=None, description="Judge by this instead of the checkpoint's."),
            ),
            include=(
                Annotated[list[Include], names],
                Field(default=None, description="More to answer."),
            ),
        ),
    )


def _vector(features: tuple[Feature, ...], *, is_ranged: bool) -> Any:
    """Return the type of one vector: so many numbers, each with its name and range."""
    numbers = tuple(
        Annotated[
            float,
            Field(
                ge=feature.low if is_ranged else -FLOAT32_MAX,
                le=feature.high if is_ranged else FLOAT32_MAX,
                allow_inf_nan=False,
                title=feature.name,
                description=f"{feature.meaning}; {feature.unit}",
            ),
        ]
        for feature in features
    )
    return tuple.__class_getitem__(numbers)


def _example(features: tuple[Feature, ...]) -> list[float]:
    """Return a vector within the ranges: zeros where they are allowed."""
    return [min(max(0.0, feature.low), feature.high) for feature in features]


def _rows(value: Any, batch_depth: int) -> int | None:
    """Return the number of rows of nested lists, or None if they have no batch level."""
    depth, inner = 0, value
    while isinstance(inner, list | tuple):
        depth += 1
        inner = inner[0]
    return len(value) if depth == batch_depth else None
