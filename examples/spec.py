"""What the examples need of a model: the state and the actions of a spec of ours. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from models.highway import highway_spec
from models.road_users import road_users_spec
from models.spec import Spec

HIGHWAY = highway_spec()

_SIZED = len(road_users_spec(extras=()).state)


def known_spec(state_names: Sequence[str]) -> Spec:
    """Return the spec of a model: of cars of one size, or of road users with their sizes.

    Args:
        state_names: Of the model's state features, in order.

    Raises:
        ValueError: It is another one.
    """
    names = [*state_names]
    candidates = [HIGHWAY]
    try:
        candidates.append(road_users_spec(names[_SIZED:]))
    except ValueError:  # what is behind the sizes is nothing that it knows
        candidates.append(road_users_spec())
    for spec in candidates:
        if names == [feature.name for feature in spec.state]:
            return spec
    expected = "; or ".join(f"{x.name!r}: {[f.name for f in x.state]}" for x in candidates)
    raise ValueError(f"the model's state has the features {names}, this needs those of {expected}")


def has_sizes(spec: Spec) -> bool:
    """Return whether states of a spec say how big road users are."""
    return spec.geometry is not None and spec.geometry.length is not None
