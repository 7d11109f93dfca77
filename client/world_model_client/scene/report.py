"""A state that was built, and what became of everybody who was given."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from world_model_client.scene.assembly import STANDING_MPS, Assembled
from world_model_client.scene.frames import Floats, shown
from world_model_client.scene.layout import SLOT_PARTS, Layout
from world_model_client.scene.rectangles import gap
from world_model_client.scene.road import Place

BEYOND_RANGE = "beyond_range"
NO_SLOT = "no_slot"
NOT_FINITE = "not_finite"
NO_SIZE = "no_size"
REPLACED = "replaced"

_REACH_MPS2 = 4.0
"""By this two road users may brake or steer relative to each other: a lane beside is not left for
within 0.8 s by less."""

_MOMENTS = 9
"""At so many within the horizon it is looked who touches: at 40 m/s, each 4 m."""

_SEEN_M = 0.005
"""Who is moved by less has not been moved."""


class LeftOut(NamedTuple):
    """Somebody who is not in the state.

    Attributes:
        id: As given.
        reason: "beyond_range"; "no_slot": the slots are full of others; "not_finite": a number is
            none; "no_size": its size is none, and that of its kind is not known; "replaced": the
            tracker has lost it, and somebody else is where it would be.
        could_matter: Whether it may touch the ego within the model's horizon, if both go on as
            they go now but for 4 m/s^2 in any direction, or nobody knows where it is.
        distance_m: From the ego, by centres; NaN if it is not known.
        gap_m: Between both rectangles; likewise.
        fault: What is wrong with what was given, for a person; else empty.
    """

    id: Hashable
    reason: str
    could_matter: bool
    distance_m: float = math.nan
    gap_m: float = math.nan
    fault: str = ""

    @property
    def text(self) -> str:
        """The same for a person."""
        if self.fault:
            return f"{shown(self.id)}: {self.fault}"
        why = "others are in all slots" if self.reason == NO_SLOT else "that is out of range"
        return f"{shown(self.id)}: {self.distance_m:.1f} m away, {self.gap_m:.1f} m apart: {why}"


@dataclass(frozen=True)
class Note:
    """Something that is not in the state as it was given.

    Attributes:
        about: The id of a road user, or the name of a feature of the ego.
        text: For a person.
    """

    about: Hashable
    text: str


@dataclass(frozen=True)
class Built:
    """A state, and what became of what was given.

    Attributes:
        state: [S], to be sent with the model's `frame`.
        slots: Who is in each slot, None where nobody is.
        left_out: Who is not in the state.
        coasted: Who is in the state though the tracker has lost it: moved on by its last motion.
        notes: What was changed to fit the model.
    """

    state: NDArray[np.float32]
    slots: tuple[Hashable | None, ...]
    left_out: tuple[LeftOut, ...]
    coasted: tuple[Hashable, ...]
    notes: tuple[Note, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nobody is left out who could matter; if not, treat `safe` as `unknown`."""
        return not any(left.could_matter for left in self.left_out)


def left_out_of(
    layout: Layout, ids: Sequence[Hashable], ego: Floats, others: Floats, made: Assembled
) -> list[LeftOut]:
    """Return who has a place, but none in the state.

    Args:
        layout: Of the state.
        ids: [K].
        ego: [1, 6] `EGO_COLUMNS`.
        others: [K, 8] `OTHER_COLUMNS`.
        made: Of these.
    """
    is_absent = np.full(len(ids) + 1, True)
    is_absent[made.columns[0]] = False  # -1 is the one more
    absent = np.flatnonzero(is_absent[:-1])
    if not len(absent):
        return []
    them, gaps = others[absent], made.gaps[0, absent]
    distances = np.hypot(them[:, 0] - ego[0, 0], them[:, 1] - ego[0, 1])
    matters = _could_touch(ego, them, gaps, layout.horizon_s)
    columns = (absent, made.near[0, absent], matters, distances, gaps)
    return [
        LeftOut(ids[k], NO_SLOT if is_near else BEYOND_RANGE, could_matter, distance_m, gap_m)
        for k, is_near, could_matter, distance_m, gap_m in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


def _could_touch(ego: Floats, them: Floats, gaps: Floats, horizon_s: float) -> NDArray[np.bool_]:
    """Return who [n] may touch the ego within the horizon.

    Both go on straight as they go now, and one of them leaves that path by `_REACH_MPS2`: after t
    by half of that times t^2.
    """
    moments = np.linspace(0.0, horizon_s, _MOMENTS)
    reach = _REACH_MPS2 * moments**2 / 2
    velocities = _velocities(them) - _velocities(ego)  # [2, n]
    could: NDArray[np.bool_] = gaps <= np.hypot(*velocities) * horizon_s + reach[-1]
    if not could.any():
        return could
    near, (x, y) = them[could], velocities[:, could]
    x, y = (
        (near[:, axis] - ego[0, axis])[:, None] + moments * velocity[:, None]
        for axis, velocity in ((0, x), (1, y))
    )
    cos, sin = np.cos(ego[0, 2]), np.sin(ego[0, 2])
    later = gap(
        cos * x + sin * y,
        cos * y - sin * x,
        (near[:, 2] - ego[0, 2])[:, None],
        (ego[0, 4], ego[0, 5]),
        (near[:, 4:5], near[:, 5:6]),
    )
    could[could] = (later <= reach).any(axis=1)
    return could


def _velocities(rows: Floats) -> Floats:
    return np.stack([rows[:, 3] * np.cos(rows[:, 2]), rows[:, 3] * np.sin(rows[:, 2])])


def notes_of(
    layout: Layout,
    ids: Sequence[Hashable],
    kinds: Mapping[Hashable, str],
    ego: Floats,
    place: Place,
    made: Assembled,
) -> list[Note]:
    """Return what is not in the state as it was given.

    Args:
        layout: Of the state.
        ids: [K].
        kinds: By id.
        ego: [1, 6] `EGO_COLUMNS`.
        place: Of the ego.
        made: Of these.
    """
    notes = _notes_of_ego(layout, ego, place)
    clipped = set(np.flatnonzero(made.clipped[0]).tolist()) if made.clipped.any() else set()
    for slot, k in enumerate(made.columns[0].tolist()):
        if k < 0:
            continue
        along, across = made.moved[0, k].tolist()
        if made.gaps[0, k] < 0:
            depth_m = -made.gaps[0, k]
            text = f"overlaps the ego by {depth_m:.2f} m: the verdict is unknown"
            notes.append(Note(ids[k], text))
        if abs(along) > _SEEN_M or abs(across) > _SEEN_M:
            text = (
                f"sent {_metres(along)} along and {_metres(across)} across the ego from where it "
                "is, which shows its gap to a model without sizes"
            )
            notes.append(Note(ids[k], text))
        if layout.kinds and kinds[ids[k]] not in layout.kinds:
            notes.append(Note(ids[k], _unknown_kind(kinds[ids[k]], layout.kinds)))
        for part, column in zip(SLOT_PARTS, layout.slots[slot], strict=True) if clipped else ():
            if column in clipped:
                value = made.states[0, column]
                text = f"its {part} is beyond what the model knows: sent as {value:.3g}"
                notes.append(Note(ids[k], text))
    return notes


def _metres(distance: float) -> str:
    return f"{round(distance, 2) + 0.0:+.2f} m"  # plus 0: no -0.00


def _notes_of_ego(layout: Layout, ego: Floats, place: Place) -> list[Note]:
    notes = []
    for name, distance in (("left_edge", place.left_edge), ("right_edge", place.right_edge)):
        if name in layout.ego and np.isinf(distance[0]):
            bound = layout.saturations[layout.ego[name], 1]
            notes.append(Note(name, f"not given: sent as {bound:g} m, as if it were far away"))
    if place.is_against[0]:
        text = "the ego points against the direction of the closest lane, which no feature shows"
        notes.append(Note("sin_heading_error", text))
    if ego[0, 3] < -STANDING_MPS:
        text = f"the ego reverses, at {ego[0, 3]:g} m/s: the verdict is unknown"
        notes.append(Note("speed", text))
    return notes


def _unknown_kind(kind: str, known: Collection[str]) -> str:
    return f"the model does not know the kind {shown(kind)} (known: {', '.join(sorted(known))})"
