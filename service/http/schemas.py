"""The JSON contract as pydantic models: what OpenAPI shows, with a model's own dims and ranges.

Requests do not go through them (`service.http.reading.bodies` reads them in one NumPy pass); a test
holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from models.spec import Feature
from service.http.contract import (
    DEFAULT_OUTPUTS,
    FLOAT32_MAX,
    MOST_NAMES,
    ArrayField,
    Contract,
    Include,
    Kind,
    Output,
)

_BODY = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())  # `model_version` is in one of them


class Reason(BaseModel):
    """A rule of the safety check that fired."""

    rule: str = Field(description="Stable name of the rule.", examples=["crash_probability"])
    message: str = Field(description="What it saw, for a person.")


class AttributedGroup(BaseModel):
    """Features that belong together, and their share of a crash probability."""

    name: str = Field(
        description="`neighbour_1` and so on by slot, `road`, `actions`, or `others`.",
        examples=["neighbour_1"],
    )
    contribution: float | None = Field(description="Sum over its features.")
    crash_probability_without: float | None = Field(
        description="Computed with this group alone taken away: the neighbour's slot is empty, or "
        "the features are the baseline's."
    )


class ChangedFeature(BaseModel):
    """One feature of the state changed, all others as they are."""

    value: float | None = Field(description="Null if the feature cannot be changed to there.")
    crash_probability: float | None = Field(description="Computed with that value.")


class ChangedAction(BaseModel):
    """One feature of the actions changed by one spread in all steps, within its range."""

    crash_probability: float | None


class AttributedFeature(BaseModel):
    """What a feature of the state does to the crash probability."""

    name: str
    unit: str
    baseline: float | None = Field(description="Its value in the baseline.")
    contribution: float | None = Field(
        description="Its share of the difference to the baseline's crash probability."
    )
    gradient: float | None = Field(
        description="Derivative of the crash probability at this sequence, for one spread more."
    )
    spread: float = Field(description="Standard deviation in training, in its unit.")
    lower: ChangedFeature = Field(description="One spread lower, within what is known.")
    higher: ChangedFeature = Field(description="One spread higher, within what is known.")


class AttributedAction(BaseModel):
    """What a feature of the actions does to the crash probability."""

    name: str
    unit: str
    baseline: float = Field(description="Its value in the baseline, in every step.")
    contribution: float | None = Field(description="Sum over the steps.")
    contribution_by_step: list[float | None] = Field(description="[H].")
    gradient_by_step: list[float | None] = Field(
        description="[H], derivatives at this sequence, for one spread more in that step."
    )
    spread: float = Field(description="Half of its range.")
    lower: ChangedAction
    higher: ChangedAction


class AttributionAnswer(BaseModel):
    """What the crash probability of one sequence is attributed to."""

    baseline: Literal["alone", "training_mean"] = Field(description="What it is compared with.")
    crash_probability: float | None = Field(
        description="Of the sequence, computed in PyTorch: last digits may differ."
    )
    baseline_crash_probability: float | None
    residual: float | None = Field(
        description="Difference of the two probabilities minus all contributions."
    )
    groups: list[AttributedGroup] = Field(description="The largest contribution first.")
    state: list[AttributedFeature] = Field(description="[S], in the state's order.")
    action: list[AttributedAction] = Field(description="[A], in the action's order.")
    contribution_by_step: list[float | None] = Field(description="[H], of all action features.")


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
    uncertainty: float | None = Field(
        description="Disagreement of the members; null if one answers, or it is not finite."
    )
    expected_error_m: float | None = Field(
        description="How far neighbours will probably be from where they are predicted to be after "
        "the evaluated horizon, m; null if the model does not know."
    )
    threshold: float | None = Field(description="Crash probability judged by.")
    reasons: list[Reason] = Field(description="The rules that fired; empty if safe.")
    horizon_s: float = Field(description="Length of the sequence in seconds.")
    trajectory: list[list[float | None]] | None = Field(
        default=None, description="[H+1][S], if included."
    )


class SafetyCheckAnswer(_Answer, Verdict):
    """Answer of /safety-check to one sequence."""

    attribution: AttributionAnswer | None = Field(
        default=None, description="If included; null where the prediction is not finite."
    )
    model_version: str


class CandidatesAnswer(_Answer):
    """Answer of /safety-check to K sequences."""

    candidates: list[Verdict] = Field(description="One a sequence, in order.")
    best: int = Field(description="Index of the one with the lowest risk.")
    model_version: str


class PredictAnswer(_Answer):
    """Answer of /predict."""

    next_state: list[float] | list[list[float]] = Field(description="[S] or [N][S].")
    reward: float | list[float]
    done: float | list[float] = Field(description="P(the episode ends at this step).")
    uncertainty: float | list[float] | None = Field(
        description="Disagreement of the members; null if there is one only."
    )
    model_version: str = Field(
        description="Hash of all that decides the answer, and how many members do, if not all."
    )


class RolloutAnswer(_Answer):
    """Answer of /rollout: the outputs asked for."""

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
    uncertainty: float | list[float] | None = Field(
        default=None, description="Disagreement of the members; null if one answers."
    )
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


_EXAMPLE_STEPS = 16

_OPTIONS: Mapping[str, Any] = {
    "outputs": (
        Annotated[list[Output], Field(min_length=1, max_length=MOST_NAMES)],
        Field(default=list(DEFAULT_OUTPUTS), description="What to answer."),
    ),
    "threshold": (
        Annotated[float, Field(ge=0, le=1)],
        Field(
            default=None,
            description="Judge by this instead of the checkpoint's. Its `safe_below` stays.",
        ),
    ),
    "include": (
        Annotated[list[Include], Field(min_length=1, max_length=MOST_NAMES)],
        Field(default=None, description="More to answer."),
    ),
}


def request_model(contract: Contract, kind: Kind, name: str) -> type[BaseModel]:
    """Return the model of a request's body, with the dims and ranges of the contract.

    Args:
        contract: What bodies hold.
        kind: Of which endpoint.
        name: Of the model.
    """
    fields, example = contract.fields(kind), contract.spec.example
    state, actions = _nested(fields.state), _nested(fields.actions)
    options = {**_OPTIONS, "members": _members(contract), **_conventions(contract)}
    a_state = _example(fields.state.features, example.state if example else ())
    an_action = _example(fields.actions.features, example.action if example else ())
    steps = min(_EXAMPLE_STEPS, contract.max_horizon)
    return create_model(
        name,
        __config__=_BODY,
        state=_state_field(fields.state, state, a_state, is_batched=fields.takes_many_states),
        **{fields.actions.name: _actions_field(fields.actions, actions, an_action, steps)},
        **{option: options[option] for option in fields.options},
    )


def _members(contract: Contract) -> Any:
    """Return the field that says how many members answer."""
    text = (
        "How many members of the ensemble answer, the first ones; all by default. Fewer cost less; "
        "no verdict is `safe` then, and one member has no uncertainty."
    )
    number = Annotated[int, Field(ge=1, le=contract.members)]
    return number, Field(default=contract.members, description=text)


def _conventions(contract: Contract) -> Mapping[str, Any]:
    """Return the fields by which a caller says what its numbers mean: one value each."""
    spec, (low, high) = contract.spec, contract.dt_bounds
    dt_s = Field(
        default=None,
        ge=low,
        le=high,
        examples=[spec.dt_s],
        description="Length of a step in seconds; refused if it is not the model's.",
    )
    text = "Name of the axes; refused if it is not the model's."
    frame = Field(default=None, examples=[spec.frame], description=text)
    return {"dt_s": (float, dt_s), "frame": (Literal[spec.frame], frame)}


def _state_field(
    field: ArrayField, levels: list[Any], example: list[float], *, is_batched: bool
) -> Any:
    one, many = levels
    if not is_batched:
        return one, Field(examples=[example])
    dim = len(field.features)
    text = f"[{dim}] or [K][{dim}] numbers; a bare state serves all action rows."
    return one | many, Field(description=text, examples=[example])


def _actions_field(field: ArrayField, levels: list[Any], example: list[float], steps: int) -> Any:
    *_, one, many = levels
    dim = len(field.features)
    if len(field.axes) == 2:
        return one | many, Field(examples=[example])
    text = f"[H][{dim}] or [K][H][{dim}] numbers."
    return one | many, Field(description=text, examples=[[example] * steps])


def _nested(field: ArrayField) -> list[Any]:
    """Return the types of a field's values, from one vector to all axes."""
    levels: list[Any] = [_vector(field)]
    for axis in reversed(field.axes[:-1]):
        entries: Any = list.__class_getitem__(levels[-1])
        levels.append(Annotated[entries, Field(min_length=axis.low, max_length=axis.high)])
    return levels


def _vector(field: ArrayField) -> Any:
    """Return the type of one vector: so many numbers, each with its name and range."""
    numbers = tuple(
        Annotated[
            float,
            Field(
                ge=feature.low if field.is_ranged else -FLOAT32_MAX,
                le=feature.high if field.is_ranged else FLOAT32_MAX,
                allow_inf_nan=False,
                title=feature.name,
                description=_described(feature, is_ranged=field.is_ranged),
            ),
        ]
        for feature in field.features
    )
    return tuple.__class_getitem__(numbers)


def _described(feature: Feature, *, is_ranged: bool) -> str:
    text = f"{feature.meaning}; {feature.unit}"
    return text if is_ranged else f"{text}; sensible from {feature.low:g} to {feature.high:g}"


def _example(features: tuple[Feature, ...], given: Sequence[float]) -> list[float]:
    """Return the spec's own example, or a vector within the ranges: zeros where they allow it."""
    return list(given) or [min(max(0.0, feature.low), feature.high) for feature in features]
