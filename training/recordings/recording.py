"""What every source of tracks is read into."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.road_users import ROAD_USERS
from world_model_client.errors import printable
from world_model_client.scene import ISO8855, TYPICAL_SIZES_M

if TYPE_CHECKING:  # roads raise RecordingError
    from training.recordings.roads import Carriageway

Floats = NDArray[np.floating[Any]]

KINDS = frozenset(kind.kind for kind in ROAD_USERS)

LONGEST_GAP_S = 0.5
"""A road user that is not seen for longer begins a new track; the client moves lost ones on for
as long."""

FASTEST_MPS = 70.0
FARTHEST_JUMP_M = 3.0
"""From where the steps before and after lead: nobody moves so, an id changed hands."""

LEAST_SIZE_M, LARGEST_SIZE_M = 0.2, 100.0
"""Of a length or a width: what is smaller is no road user, but in other units."""
SIZE_UNITS = "m, not cm, feet or km"

_OTHER_NAMES = {
    "automobile": "car",
    "passenger car": "car",
    "taxi": "car",
    "suv": "car",
    "priority vehicle": "car",
    "delivery": "van",
    "trailer": "truck with trailer",
    "truck trailer": "truck with trailer",
    "semitrailer": "truck with trailer",
    "truck bus": "truck",
    "lorry": "truck",
    "cyclist": "bicycle",
    "bike": "bicycle",
    "motorbike": "motorcycle",
    "motorcyclist": "motorcycle",
    "person": "pedestrian",
    "ped": "pedestrian",
}

_SHOWN_NAMES = 5


class RecordingError(ValueError):
    """A recording cannot be read; the message is one sentence."""


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line of bounded length."""
    return printable((str(error).splitlines() or [""])[0] or type(error).__name__, 300)


def kind_of(name: str) -> str:
    """Return the kind of `models.road_users.ROAD_USERS` that a source calls so, or the name."""
    plain = " ".join(name.lower().replace("_", " ").replace("-", " ").split())
    return plain if plain in KINDS else _OTHER_NAMES.get(plain, name)


@dataclass(frozen=True)
class Track:
    """One road user, sample by sample in order of time.

    Attributes:
        id: For people, too.
        kind: One of `KINDS`, or what the source says.
        length: m.
        width: m.
        times_s: [n] increasing.
        x: [n] m, of the centre of its rectangle.
        y: [n] m.
        heading: [n] rad, of its body, as its tracker says it; None if it says none.
        speed: [n] m/s, along the heading; likewise.
    """

    id: str
    kind: str
    length: float
    width: float
    times_s: Floats
    x: Floats
    y: Floats
    heading: Floats | None
    speed: Floats | None

    def part(self, rows: slice, name: str) -> Track:
        """Return some of its samples as a track of its own."""
        return replace(
            self,
            id=name,
            times_s=self.times_s[rows],
            x=self.x[rows],
            y=self.y[rows],
            heading=None if self.heading is None else self.heading[rows],
            speed=None if self.speed is None else self.speed[rows],
        )


@dataclass
class Unused:
    """What could not be used, by reason.

    Attributes:
        names: Of each reason.
    """

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Note one."""
        self.names.setdefault(reason, []).append(name)

    def take(self, other: Unused, source: str) -> None:
        """Note all that another has noted of a source."""
        for reason, names in other.names.items():
            for name in names:
                self.add(reason, f"{source} {name}")

    def lines(self) -> list[str]:
        """Return a line for each reason: how many, and the first few by name."""
        lines = []
        for reason, names in self.names.items():
            more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
            lines.append(f"{len(names)} x {reason}: {', '.join(names[:_SHOWN_NAMES])}{more}")
        return lines


@dataclass(frozen=True)
class Recording:
    """Tracks of one place and time.

    Attributes:
        name: For people.
        tracks: Of everybody; none has gaps of more than `LONGEST_GAP_S`, or jumps.
        carriageways: Of its roads; empty if it has none.
        has_roads: Whether roads were described at all: who is on none of them is no ego then.
        frame: Of all places and angles, one of `world_model_client.scene.FRAMES`.
    """

    name: str
    tracks: tuple[Track, ...]
    carriageways: tuple[Carriageway, ...] = ()
    has_roads: bool = False
    frame: str = ISO8855


def size_of(kind: str, length: float | None, width: float | None) -> tuple[float, float] | None:
    """Return length and width in m: those given, else those of the kind; None if nobody knows."""
    usual = TYPICAL_SIZES_M.get(kind)
    if (length is None or width is None) and usual is None:
        return None
    typical = usual or (0.0, 0.0)
    return (
        typical[0] if length is None else length,
        typical[1] if width is None else width,
    )


def whole_tracks(tracks: Iterable[Track], unused: Unused) -> tuple[Track, ...]:
    """Return tracks without gaps and jumps: each is cut into parts there.

    Args:
        tracks: As recorded.
        unused: Takes the names of those that were cut.
    """
    found: list[Track] = []
    for track in tracks:
        steps_s = np.diff(track.times_s)
        has_gap, jumps = steps_s > LONGEST_GAP_S + 1e-6, _jumps(track, steps_s)
        for reason, is_so in (
            (f"a gap of more than {LONGEST_GAP_S:g} s, cut there", has_gap),
            ("an impossible jump, cut there", jumps & ~has_gap),
        ):
            if is_so.any():
                at_s = float(track.times_s[int(np.argmax(is_so))])
                unused.add(reason, f"{track.id} at {at_s:.2f} s")
        starts = [0, *(np.flatnonzero(has_gap | jumps) + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], len(track.times_s)], strict=True):
            name = track.id if not start else f"{track.id} from {track.times_s[start]:.2f} s"
            found.append(track.part(slice(start, end), name))
    return tuple(found)


def _jumps(track: Track, steps_s: Floats) -> NDArray[np.bool_]:
    """Return which steps [n-1] nobody can make."""
    if not len(steps_s):
        return np.zeros(0, np.bool_)
    velocity = np.stack([np.diff(track.x), np.diff(track.y)], axis=-1) / steps_s[:, None]
    jumps: NDArray[Any] = np.hypot(velocity[:, 0], velocity[:, 1]) > FASTEST_MPS
    if len(velocity) > 2:
        # A jump is one step unlike both beside it; of a spike both steps are.
        change = np.hypot(*np.diff(velocity, axis=0).T)
        off = np.minimum(change[:-1], change[1:]) * steps_s[1:-1]
        jumps[1:-1] |= off > FARTHEST_JUMP_M
    return jumps
