"""From what a planner knows to the state that the service is asked about."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model_client.errors import InvalidInputError
from world_model_client.scene.assembly import RANGE_M, assemble
from world_model_client.scene.bicycle import Bicycle
from world_model_client.scene.frames import ISO8855, Floats, checked_frame, number, shown
from world_model_client.scene.layout import ASSUMED_LENGTH_M, Layout
from world_model_client.scene.readings import Readings, read_ego, read_objects
from world_model_client.scene.rectangles import gap
from world_model_client.scene.report import REPLACED, Built, LeftOut, left_out_of, notes_of
from world_model_client.scene.road import Road
from world_model_client.scene.road_users import Ego, RoadUser
from world_model_client.scene.tracks import MEMORY_S, Tracks

FILTER_S = 0.4
"""Window of the filter of tracks."""

COAST_S = 0.5
"""How long who is lost is moved on."""


class StateBuilder:
    """Makes states of what a planner has: poses, tracked road users with sizes, and lines.

    It keeps the history of tracks, so one builder belongs to one drive: `update` is called once for
    each moment, in order.

    Args:
        model: The answer to `GET /model`, as `Client.model()` returns it, or a `Layout`.
        frame: Of all that is given: "iso8855" or "forward-right-down".
        filter_s: Window of the filter of tracks, from 0 (differences of two samples for
            accelerations and turn rates, all else as it was given) to 1 s; the formula is in
            `scene.tracks`.
        coast_s: How long who is no longer reported is moved on by its last motion, 0 to 1 s.
        smooths_motion: Whether the filter takes noise off places, headings and speeds of others;
            False for a tracker that filters by itself: then it makes rates alone.
        range_m: Who is farther away is left out.

    Attributes:
        layout: Of the states.
        frame: As given.

    Raises:
        InvalidInputError: The builder cannot fill the model's state, or an option is none.
    """

    def __init__(
        self,
        model: Mapping[str, Any] | Layout,
        frame: str = ISO8855,
        *,
        filter_s: float = FILTER_S,
        coast_s: float = COAST_S,
        smooths_motion: bool = True,
        range_m: float = RANGE_M,
    ) -> None:
        self.layout = model if isinstance(model, Layout) else Layout.from_model(model)
        self.frame = checked_frame("frame", frame)
        self._filter_s = number("filter_s", filter_s, 0, MEMORY_S)
        self._coast_s = number("coast_s", coast_s, 0, MEMORY_S)
        self._range_m = number("range_m", range_m, 0, 1e6, is_open=True)
        self._smooths_motion = smooths_motion
        self.reset()

    def reset(self) -> None:
        """Forget all tracks and the time: the next update begins another drive."""
        self._tracks = Tracks(self._filter_s, self._coast_s, self._smooths_motion)
        self._time_s = -math.inf

    def update(self, time_s: float, ego: Ego, objects: Iterable[RoadUser], road: Road) -> Built:
        """Return the state of now.

        All that is given is of the same moment; `moved_on` brings older measurements there.

        Args:
            time_s: Of now, by any clock that runs evenly; later than at the update before.
            ego: The ego now.
            objects: Everybody who is tracked now, in any order, far ones too.
            road: What the ego drives on.

        Raises:
            InvalidInputError: Something cannot be right: the message names it, its value and what
                is allowed. Nothing is kept of such a call. A number of a road user that is not
                finite is no error: that one is left out, or moved on if it was seen a moment ago.
        """
        now_s = number("time_s", time_s)
        if not now_s > self._time_s:
            raise InvalidInputError(
                f"time_s is {now_s!r}, and that of the update before was {self._time_s!r} "
                "(allowed: later times; reset() begins another drive)"
            )
        if not isinstance(road, Road):
            raise InvalidInputError(f"road is {shown(road)} (allowed: a Road)")
        me, readings = read_ego(ego), read_objects(objects)
        place = road.locate(me, self.frame)
        self._time_s = now_s
        others = self._tracks.update(now_s, readings.ids, readings.rows, readings.kinds)
        ids, others, left_out, coasted = self._with_lost(now_s, readings, others)
        made = assemble(
            self.layout,
            self.frame,
            me,
            place,
            others[None],
            np.ones((1, len(ids)), bool),
            self._range_m,
        )
        left_out += left_out_of(self.layout, ids, me, others, made)
        notes = readings.notes + notes_of(self.layout, ids, self._tracks.kinds, me, place, made)
        slots = tuple(ids[k] if k >= 0 else None for k in made.columns[0].tolist())
        return Built(
            state=made.states[0],
            slots=slots,
            left_out=tuple(left_out),
            coasted=tuple(x for x in slots if x in coasted),
            notes=tuple(notes),
        )

    def _with_lost(
        self, now_s: float, readings: Readings, others: Floats
    ) -> tuple[list[Hashable], Floats, list[LeftOut], set[Hashable]]:
        """Return all ids and rows, those that coast at the end, who is left out, who coasts."""
        lost, moved = self._tracks.lost(now_s, set(readings.ids))
        if not lost:
            return readings.ids, others, readings.left_out, set()
        is_free = _are_free(moved, others)
        kept = [x for x, free in zip(lost, is_free, strict=True) if free]
        left_out = [x for x in readings.left_out if x.id not in lost]
        left_out += [_replaced(x) for x, free in zip(lost, is_free, strict=True) if not free]
        return [*readings.ids, *kept], np.concatenate([others, moved[is_free]]), left_out, {*kept}

    def bicycle(self, ego: Ego) -> Bicycle:
        """Return the ego as the model moves it: its curvatures and accelerations to actions.

        A model with the ego's length in its state takes it for the wheelbase, others take 5 m.
        """
        length = ego.length if self.layout.has_ego_size else ASSUMED_LENGTH_M
        return Bicycle(length, self.frame, self.layout.frame)


def _are_free(lost: Floats, others: Floats) -> NDArray[np.bool_]:
    """Return which of the lost [L, 8] overlap nobody [K, 8] who is reported, [L]."""
    if not len(others):
        return np.full(len(lost), True)
    mine, theirs = lost[:, None], others[None]
    x, y = theirs[..., 0] - mine[..., 0], theirs[..., 1] - mine[..., 1]
    cos, sin = np.cos(mine[..., 2]), np.sin(mine[..., 2])
    gaps = gap(
        cos * x + sin * y,
        cos * y - sin * x,
        theirs[..., 2] - mine[..., 2],
        (mine[..., 4], mine[..., 5]),
        (theirs[..., 4], theirs[..., 5]),
    )
    return np.asarray((gaps >= 0).all(axis=1))


def _replaced(lost: Hashable) -> LeftOut:
    text = "the tracker has lost it, and another road user is where it would be"
    return LeftOut(lost, REPLACED, could_matter=False, fault=text)
