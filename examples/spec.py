"""What the examples need of a model: the state and the actions of `models.highway`. No torch."""

from __future__ import annotations

from models.highway import highway_spec


def check_spec(state_names: list[str]) -> None:
    """Refuse a model whose state is not `highway_spec`'s.

    Args:
        state_names: Of the model's state features, in order.

    Raises:
        ValueError: They are others.
    """
    expected = [feature.name for feature in highway_spec().state]
    if state_names != expected:
        raise ValueError(
            f"the model's state has the features {state_names}, this needs those of "
            f"{highway_spec().name!r}: {expected}"
        )
