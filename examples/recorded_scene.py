"""A moment of recorded traffic, from its tracks to verdicts: may this vehicle go on, or brake?

    python -m examples.recorded_scene USA_US101-5_1_T-1.xml --ego 464 --at 7

It does what a planner's own program does. The tracks of a CommonRoad scenario stand for its
tracker, the lanelets for its map; `training.recordings` reads both by commonroad-io (extra
`tracks`). A `StateBuilder` gets them frame by frame, as they would have come, and the service is
asked about the last frame. `docs/tracks.md` shows what it prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from training.recordings.commonroad import read_commonroad
from training.recordings.recording import Recording, RecordingError, Track, Unused
from training.recordings.roads import Roads
from world_model_client import Client, WorldModelError
from world_model_client.scene import Built, Ego, Road, RoadUser, StateBuilder

Moment = tuple[float, Ego, list[RoadUser], Road]
"""What `StateBuilder.update` takes."""

PLANS = ("go on", "brake fully")

_SAME_TIME_S = 1e-6


def moments(recording: Recording, name: str, at_s: float) -> Iterator[Moment]:
    """Yield what a vehicle knows at each frame, from its first one to a time.

    Args:
        recording: Of the scene.
        name: The vehicle's id.
        at_s: Of the last frame, or a little later.

    Raises:
        click.UsageError: The vehicle is not in view then, or on no road.
    """
    others = {track.id: track for track in recording.tracks}
    if name not in others:
        raise click.UsageError(f"--ego {name} is nobody in this scene (there: {', '.join(others)})")
    me = others.pop(name)
    first_s, last_s = me.times_s[[0, -1]].tolist()
    count = int((me.times_s <= at_s + _SAME_TIME_S).sum())
    if not count or at_s > last_s + _SAME_TIME_S:
        raise click.UsageError(f"{name} is in view from {first_s:.1f} to {last_s:.1f} s, not then")
    roads = roads_of(recording, me)
    if roads[count - 1] is None:
        raise click.UsageError(f"{name} is on no road of the map then")
    poses = poses_of(me).tolist()
    for now_s, pose, road in list(zip(me.times_s.tolist(), poses, roads, strict=True))[:count]:
        if road is not None:
            x, y, heading, speed = pose
            ego = Ego(x, y, heading, speed, me.length, me.width, me.kind)
            yield now_s, ego, tracked(others.values(), now_s), road


def tracked(tracks: Iterable[Track], now_s: float) -> list[RoadUser]:
    """Return who is in view at a time, as a tracker reports them: no later sample is looked at."""
    return [
        RoadUser(track.id, x, y, heading, speed, track.length, track.width, track.kind)
        for track in tracks
        for x, y, heading, speed in poses_of(track)[np.abs(track.times_s - now_s) < _SAME_TIME_S]
    ]


def poses_of(track: Track) -> NDArray[np.float64]:
    """Return x, y, heading, speed of a track [n, 4]; positions are centres in CommonRoad."""
    if track.heading is None or track.speed is None:
        raise click.UsageError(f"{track.id} has no headings or no speeds")
    return np.stack([track.x, track.y, track.heading, track.speed], axis=-1)


def roads_of(recording: Recording, track: Track) -> list[Road | None]:
    """Return the road that a vehicle is on at each sample; None where it is on none.

    Where roads overlap, as in junctions, its whole drive says on which it is: a planner knows its
    route. Nothing else here knows what comes later.
    """
    step_s = float(np.diff(track.times_s).mean()) if len(track.times_s) > 1 else 1.0
    roads = Roads(recording.carriageways, recording.frame, recording.name)
    route = roads.route(poses_of(track), step_s).road.tolist()
    return [None if i < 0 else recording.carriageways[i].road for i in route]


def plans_of(builder: StateBuilder, ego: Ego, road: Road, steps: int) -> NDArray[np.float64]:
    """Return the actions [2, H, 3] of `PLANS`: both steer as the lane bends."""
    place = road.locate(np.array([[ego.x, ego.y, ego.heading, ego.speed]]), builder.frame)
    steer = float(builder.bicycle(ego).steer_for_curvature(place.curvature, ego.speed)[0])
    return np.array([[[steer, 0.0, 0.0]] * steps, [[steer, 0.0, 1.0]] * steps])


def scene_lines(built: Built, names: Iterable[str]) -> Iterator[str]:
    """Yield what the state says, who is in it, and who is not.

    Args:
        built: The state.
        names: Of its features.
    """
    state = dict(zip(names, built.state.tolist(), strict=True))
    ego = {name: x for name, x in state.items() if not name.startswith("neighbour_")}
    yield f"ego: {_shown(ego)}"
    for slot, someone in enumerate(built.slots, 1):
        prefix = f"neighbour_{slot}_"
        seen = {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}
        yield f"slot {slot}, " + ("nobody" if someone is None else f"{someone!r}: {_shown(seen)}")
    for left in sorted(built.left_out, key=lambda left: left.gap_m):
        yield f"left out, {left.text}{', and could matter' if left.could_matter else ''}"
    for note in built.notes:
        yield f"note, {note.about!r}: {note.text}"
    if not built.is_whole:
        yield "somebody who could matter is left out: take safe for unknown"


def _shown(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {round(x, 2) + 0.0:g}" for name, x in numbers.items())


def verdict_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the service says of each plan, in its answer to `/safety-check`."""
    for plan, judged in zip(PLANS, answer["candidates"], strict=True):
        risk, threshold = (
            "none" if judged[name] is None else f"{judged[name]:.4f}"
            for name in ("crash_probability", "threshold")
        )
        yield f"{plan}: {judged['verdict']}, risk {risk}, threshold {threshold}"
        for reason in judged["reasons"]:
            yield f"  {reason['rule']}: {reason['message']}"


@click.command()
@click.argument("scenario", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--ego", "name", required=True, help="Id of the vehicle that asks.")
@click.option("--at", "at_s", required=True, type=float, help="Seconds of the scene.")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The service.")
def main(scenario: Path, name: str, at_s: float, url: str) -> None:
    """Ask about one moment of a vehicle in SCENARIO, a CommonRoad scenario."""
    try:
        recording = read_commonroad(scenario, Unused())
        with Client(url, timeout_s=30.0) as client:
            model = client.model()
            builder = StateBuilder(model, recording.frame)
            for now_s, ego, others, road in moments(recording, name, at_s):
                built = builder.update(now_s, ego, others, road)
            dt_s = model["dt_s"]
            plans = plans_of(builder, ego, road, round(builder.layout.horizon_s / dt_s))
            answer = client.safety_check(built.state, plans, dt_s=dt_s, frame=builder.layout.frame)
    except (RecordingError, WorldModelError) as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(f"{recording.name} at {now_s:.1f} s: {name} among {len(others)} others")
    for line in (*scene_lines(built, builder.layout.names), *verdict_lines(answer)):
        click.echo(line)


if __name__ == "__main__":
    main()
