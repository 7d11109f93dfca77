"""Each vehicle of a recording as the ego: its episodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.dataset.episodes import NOBODY
from training.recordings.layouts import Target
from training.recordings.motion import COLUMNS, Motion, motion_of
from training.recordings.recording import KINDS, Recording, RecordingError, Track, Unused
from training.recordings.roads import Roads, Route, nowhere
from training.simulation.worlds import lane_reward
from world_model_client.scene import RANGE_M, Bicycle, Place, assemble
from world_model_client.scene.frames import number
from world_model_client.scene.layout import ASSUMED_LENGTH_M

Floats = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]

NO_EGOS = ("pedestrian", "bicycle")
"""They do not move as a car with pedals does."""

STANDS_MPS = 0.5

CRASH, OFF_ROAD = "crash", "off the road"

_REACH_M = 30.0
"""Who is farther than the range by this has no part of his rectangle in it."""

MOST_MOMENTS, MOST_MOMENTS_EACH = 20_000_000, 2_000_000
"""Of all road users of a recording, and of each: frames that somebody is there."""

_MOST_CELLS = 2**21
"""Frames times road users whose distances are computed at once."""


@dataclass(frozen=True)
class Options:
    """How episodes are made.

    Attributes:
        is_causal: Whether states are as they were known at the moment; else as they were.
        least_s: Shorter episodes are left out; 0.1 to 3600 s.
        overlap_m: Rectangles that overlap by more have crashed, for recorded sizes are not exact;
            0 to 10 m.

    Raises:
        InvalidInputError: A number is none of these.
    """

    is_causal: bool = True
    least_s: float = 2.0
    overlap_m: float = 0.1

    def __post_init__(self) -> None:
        number("least_s", self.least_s, 0.1, 3600)
        number("overlap_m", self.overlap_m, 0, 10)


class Episode(NamedTuple):
    """What `EpisodeWriter.add` takes, of T steps, and how it ended.

    Attributes:
        states: [T + 1, S] as known at the moment.
        true_states: [T + 1, S].
        actions: [T, 3].
        rewards: [T].
        slot_ids: [T + 1, slots].
        ending: `CRASH`, `OFF_ROAD` or "".
        impossible: Steps that the bicycle cannot do.
    """

    states: NDArray[np.float32]
    true_states: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: Floats
    slot_ids: NDArray[np.int64]
    ending: str
    impossible: int


class _Someone(NamedTuple):
    track: Track
    motion: Motion


class _Made(NamedTuple):
    """States of an ego.

    Attributes:
        known: [N, S].
        true: [N, S].
        ids: [N, slots] who is in each slot.
        overlap_m: [N] how deep its rectangle is in another; below 0 if it is in none.
    """

    known: NDArray[np.float32]
    true: NDArray[np.float32]
    ids: NDArray[np.int64]
    overlap_m: Floats


class Scene:
    """A recording at the frames of episodes.

    Args:
        recording: Its tracks and roads.
        target: What states are made for.
        options: How.
        unused: Takes the names of those of whom nothing can be made.
    """

    def __init__(
        self, recording: Recording, target: Target, options: Options, unused: Unused
    ) -> None:
        self._recording, self._target, self._options = recording, target, options
        self._unused = unused
        self._dt_s = target.spec.dt_s
        start_s = min((float(track.times_s[0]) for track in recording.tracks), default=0.0)
        self._check_length()
        self._roads = Roads(recording.carriageways, recording.frame, recording.name)
        self._everybody: list[_Someone] = []
        for track, heading in zip(recording.tracks, self._lane_headings(), strict=True):
            try:
                motion = motion_of(track, start_s, self._dt_s, heading)
            except ValueError as exc:
                unused.add(f"in nobody's state, {exc}", track.id)
                continue
            self._everybody.append(_Someone(track, motion))
        self._first = np.array([x.motion.first for x in self._everybody], np.intp)
        self._end = np.array(
            [x.motion.first + len(x.motion.true) for x in self._everybody], np.intp
        )

    def _check_length(self) -> None:
        """Raise `RecordingError` if the frames of all road users are too many to be kept."""
        seen_s = [float(each.times_s[-1] - each.times_s[0]) for each in self._recording.tracks]
        for what, longest_s, most in (
            ("road users", sum(seen_s), MOST_MOMENTS),
            ("one road user", max(seen_s, default=0.0), MOST_MOMENTS_EACH),
        ):
            if (count := longest_s / self._dt_s) > most:
                raise RecordingError(
                    f"{self._recording.name} has {count:.0f} moments of {what}, at steps of "
                    f"{self._dt_s:g} s (allowed: {most}; split it by time)"
                )

    def _lane_headings(self) -> list[float | None]:
        """Return for each track the direction of its lane, if its tracker gives no heading."""
        tracks = self._recording.tracks
        rows = [row for row, track in enumerate(tracks) if track.heading is None]
        x, y = (np.array([getattr(tracks[row], axis)[0] for row in rows]) for axis in ("x", "y"))
        headings: list[float | None] = [None] * len(tracks)
        for row, heading in zip(rows, self._roads.lane_headings(x, y).tolist(), strict=True):
            headings[row] = heading if np.isfinite(heading) else None
        return headings

    def candidates(self) -> list[int]:
        """Return the indices of those who can be the ego; notes all others."""
        found = []
        for index, (track, motion) in enumerate(self._everybody):
            reason = ""
            if track.kind not in KINDS:
                reason = f"no ego, of the unknown class {track.kind!r}"
            elif track.kind in NO_EGOS:
                reason = f"no ego, but a {track.kind}"
            elif (len(motion.true) - 1) * self._dt_s < self._options.least_s - 1e-9:
                reason = f"no ego, in view for less than {self._options.least_s:g} s"
            elif np.abs(motion.true[:, 3]).max() < STANDS_MPS:
                reason = "no ego, never moves"
            if reason:
                self._unused.add(reason, track.id)
            else:
                found.append(index)
        return found

    def episodes(self, index: int) -> Iterator[Episode]:
        """Yield the episodes of one of the candidates."""
        track, motion = self._everybody[index]
        frames = np.arange(len(motion.true)) + motion.first
        if self._recording.has_roads:
            way = self._roads.route(motion.true, self._dt_s)
            is_usable = (way.road >= 0) | way.leaves
            if not (way.road >= 0).any():
                self._unused.add("no ego, on no road", track.id)
                return
            road = _last_known(way.road)
            true_place, known_place = (
                self._roads.places(road, x) for x in (motion.true, motion.own)
            )
        else:
            way = Route(np.zeros(len(frames), np.intp), np.zeros(len(frames), np.bool_))
            is_usable = np.ones(len(frames), np.bool_)
            true_place = known_place = nowhere(len(frames))
        made = self._made(index, frames, true_place, known_place)
        overlaps = made.overlap_m > self._options.overlap_m
        fits = self._fits(made.known) & self._fits(made.true)
        if beyond := int((~fits & is_usable).sum()):
            self._unused.add(
                f"moments beyond the range of spec {self._target.spec.name!r}, left out",
                f"{track.id} ({beyond} of {len(frames)} moments)",
            )
        ends = np.where(overlaps, 1, np.where(way.leaves, 2, 0))
        yield from self._cut(track, motion, true_place, made, is_usable & fits, ends)

    def _cut(
        self,
        track: Track,
        motion: Motion,
        place: Place,
        made: _Made,
        is_usable: Flags,
        ends: NDArray[np.intp],
    ) -> Iterator[Episode]:
        """Yield the episodes between what cannot be used and what ends one."""
        layout = self._target.layout
        length = track.length if layout.has_ego_size else ASSUMED_LENGTH_M
        bicycle = Bicycle(length, self._recording.frame, layout.frame)
        least = round(self._options.least_s / self._dt_s)
        count = 0
        for start, stop, ending in _runs(is_usable, ends):
            if stop - start < max(least, 1):
                continue
            rows = slice(start, stop + 1)
            inferred = bicycle.actions_from_motion(motion.true[rows, :4], self._dt_s)
            count += 1
            yield Episode(
                made.known[rows] if self._options.is_causal else made.true[rows],
                made.true[rows],
                inferred.actions,
                _rewards(motion.true[rows][1:], place.lane_offset[rows][1:], bool(ending)),
                made.ids[rows],
                ("", CRASH, OFF_ROAD)[ending],
                int((~inferred.is_possible).sum()),
            )
        if not count:
            self._unused.add(
                f"no ego, for less than {self._options.least_s:g} s at a time on a road, apart "
                "from others and within the spec's ranges",
                track.id,
            )

    def _fits(self, states: NDArray[np.float32]) -> Flags:
        low, high = (
            np.array([getattr(x, name) for x in self._target.spec.state], np.float32)
            for name in ("low", "high")
        )
        return np.asarray(((states >= low) & (states <= high)).all(axis=1))

    def _made(
        self, index: int, frames: NDArray[np.intp], true_place: Place, known_place: Place
    ) -> _Made:
        """Return the states of an ego at its frames."""
        near = (self._first <= frames[-1]) & (self._end > frames[0])
        near[index] = False
        others = np.flatnonzero(near)
        chunk = max(1, _MOST_CELLS // max(len(others), 1))
        parts = [
            self._chunk(
                index, frames[i : i + chunk], others, true_place, known_place, slice(i, i + chunk)
            )
            for i in range(0, len(frames), chunk)
        ]
        return _Made(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _chunk(
        self,
        index: int,
        frames: NDArray[np.intp],
        others: NDArray[np.intp],
        true_place: Place,
        known_place: Place,
        rows: slice,
    ) -> _Made:
        layout, frame = self._target.layout, self._recording.frame
        others = self._in_reach(index, frames, others)
        known, true, present = self._rows(frames, others)
        places_now = [Place._make(x[rows] for x in place) for place in (known_place, true_place)]
        egos = [self._ego(index, frames, name) for name in ("own", "true")]
        if self._options.is_causal:
            seen = assemble(layout, frame, egos[0], places_now[0], known, present)
            columns = seen.columns
            truth = assemble(layout, frame, egos[1], places_now[1], true, present, columns=columns)
        else:
            truth = seen = assemble(layout, frame, egos[1], places_now[1], true, present)
            columns = truth.columns
        ids = np.where(columns >= 0, np.append(others, NOBODY)[columns], NOBODY)
        overlap = -np.where(present, truth.gaps, np.inf).min(axis=1, initial=np.inf)
        return _Made(seen.states, truth.states, ids.astype(np.int64), overlap)

    def _in_reach(
        self, index: int, frames: NDArray[np.intp], others: NDArray[np.intp]
    ) -> NDArray[np.intp]:
        """Return who is ever near enough to the ego, by the boxes around their paths."""
        if not len(others):
            return others
        box = _box(self._window(index, frames))
        reach = RANGE_M + _REACH_M
        return np.array(
            [
                k
                for k in others.tolist()
                if len(path := self._window(k, frames))
                and (np.abs(_outside(box, _box(path))) <= reach).all()
            ],
            np.intp,
        )

    def _window(self, index: int, frames: NDArray[np.intp]) -> Floats:
        motion = self._everybody[index].motion
        start = max(int(frames[0]) - motion.first, 0)
        return motion.true[start : max(int(frames[-1]) + 1 - motion.first, 0)]

    def _ego(self, index: int, frames: NDArray[np.intp], name: str) -> Floats:
        track, motion = self._everybody[index]
        poses = getattr(motion, name)[frames - motion.first, :4]
        size = np.tile([track.length, track.width], (len(frames), 1))
        return np.concatenate([poses, size], axis=1)

    def _rows(
        self, frames: NDArray[np.intp], others: NDArray[np.intp]
    ) -> tuple[Floats, Floats, Flags]:
        """Return others as known and as they were [N, K, 8], and whether they are there [N, K]."""
        known, true = np.zeros((2, len(frames), len(others), 8))
        present = np.zeros((len(frames), len(others)), np.bool_)
        for column, k in enumerate(others.tolist()):
            track, motion = self._everybody[k]
            at = frames - motion.first
            there = (at >= 0) & (at < len(motion.true))
            present[:, column] = there
            for rows, values in ((known, motion.known), (true, motion.true)):
                rows[there, column, :4] = values[at[there], :4]
                rows[there, column, 4:6] = track.length, track.width
                rows[there, column, 6:] = values[at[there], 4:COLUMNS]
        return known, true, present


def _runs(is_usable: Flags, ends: NDArray[np.intp]) -> Iterator[tuple[int, int, int]]:
    """Yield the first and the last frame of each episode, and the code of its end, 0 for none."""
    start: int | None = None
    for at, (usable, end) in enumerate(zip(is_usable.tolist(), ends.tolist(), strict=True)):
        if usable and not end:
            start = at if start is None else start
            continue
        if start is not None:
            yield (start, at, end) if usable else (start, at - 1, 0)
        start = None
    if start is not None:
        yield start, len(is_usable) - 1, 0


def _rewards(after: Floats, lane_offset: Floats, ended: bool) -> Floats:
    """Return the rewards of steps that lead to poses [T, 4], by the convention "reward"."""
    speed = np.clip(after[:, 3] / 30.0, 0.0, 1.0)
    rewards = 0.6 * speed + lane_reward(lane_offset)
    if ended:
        rewards[-1] = -1.0
    return np.asarray(rewards)


def _last_known(road: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return indices in which each -1 is what was before it; at the beginning, what is after."""
    at = np.maximum.accumulate(np.where(road >= 0, np.arange(len(road)), -1))
    return road[np.where(at >= 0, at, int(np.argmax(road >= 0)))]


def _box(path: Floats) -> tuple[Floats, Floats]:
    return path[:, :2].min(axis=0), path[:, :2].max(axis=0)


def _outside(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> Floats:
    """Return by how much two boxes are apart along both axes [2]; 0 if they are not."""
    return np.maximum(np.maximum(one[0] - other[1], other[0] - one[1]), 0.0)
