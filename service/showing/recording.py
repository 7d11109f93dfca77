"""A prediction as a recording of Rerun: the one module that imports rerun.

Rerun's world is right-handed with z up: x ahead of the ego at the start, y to the left, as in ISO
8855. Nothing is sent anywhere: a file is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rerun as rr
import rerun.blueprint as rrb
from numpy.typing import NDArray

from service.showing.places import EGO, Places, Track
from service.showing.predicted import Crash, Predicted, crash_of
from service.showing.table import verdict_lines

Floats = NDArray[np.floating[Any]]

_HEIGHT_M = 1.5
"""Of all boxes: states hold no heights."""

_EGO, _OTHER, _RECORDED, _ROAD, _CRASH = (
    (40, 110, 220),
    (220, 140, 30),
    (130, 130, 130),
    (90, 90, 90),
    (220, 30, 30),
)
_LEVELS = {"safe": "INFO", "unknown": "WARN", "unsafe": "ERROR"}


def write_recording(predicted: Predicted, path: Path) -> None:
    """Write a file that Rerun opens.

    Args:
        predicted: What it shows.
        path: Of the file; one that is there is overwritten.

    Raises:
        OSError: It cannot be written.
    """
    path.touch()  # the SDK's own error names no reason
    rr.set_strict_mode(True)  # else it drops what it cannot take, with a warning
    spec = predicted.spec
    with rr.RecordingStream("world-model") as stream:
        stream.set_log_time_enabled(False)
        stream.set_log_tick_enabled(False)
        stream.save(path, default_blueprint=_blueprint(Places.are_known(spec)))
        stream.send_recording_name(predicted.given.title)
        crash = None
        if Places.are_known(spec):
            places = Places(spec)
            crash = crash_of(predicted, places.gaps(predicted.states))
            _log_scene(stream, predicted, places, crash)
        else:
            crash = crash_of(predicted, {})
            _log_features(stream, predicted)
        _log_numbers(stream, predicted)
        _log_verdict(stream, predicted, crash)
        stream.flush()


def _blueprint(has_places: bool) -> Any:
    plots = [
        rrb.TimeSeriesView(origin=f"/{name}", name=title)
        for name, title in (
            ("crash_probability", "crash probability"),
            ("reward", "reward"),
            ("uncertainty", "uncertainty"),
        )
    ]
    scene = rrb.TimeSeriesView(origin="/state", name="state")
    if has_places:
        eye = rrb.EyeControls3D(position=(-25, 0, 25), look_target=(10, 0, 0), eye_up=(0, 0, 1))
        scene = rrb.Spatial3DView(origin="/world", name="scene", eye_controls=eye)
    said = rrb.Tabs(
        rrb.TextDocumentView(origin="/verdict", name="verdict"),
        rrb.TextLogView(origin="/log", name="reasons"),
    )
    return rrb.Blueprint(
        rrb.Horizontal(rrb.Vertical(scene, said, row_shares=[3, 1]), rrb.Vertical(*plots)),
        rrb.TimePanel(timeline="time"),
    )


def _at(stream: Any, predicted: Predicted, step: int) -> None:
    """Let what is logged next be of a step."""
    stream.set_time("step", sequence=step)
    stream.set_time("time", duration=predicted.spec.dt_s * step)


def _log_scene(stream: Any, predicted: Predicted, places: Places, crash: Crash | None) -> None:
    given = predicted.given
    stream.log("world", rr.ViewCoordinates.FLU, static=True)  # x forward, y left, z up
    for name, line in places.road(given.state).items():
        strip = rr.LineStrips3D([_raised(line)], colors=[_ROAD], radii=0.05)
        stream.log(f"world/road/{name}", strip, static=True)
    tracks = places.tracks(predicted.states, given.actions)
    for track in tracks:
        _log_track(stream, predicted, track, "predicted", _EGO if track.name == EGO else _OTHER)
    for name, paths in _member_paths(predicted, places).items():
        strips = rr.LineStrips3D(paths, colors=[(*_EGO, 90) if name == EGO else (*_OTHER, 90)])
        stream.log(f"world/members/{name}", strips, static=True)
    if given.recorded is not None:
        for track in places.tracks(*given.recorded, is_recorded=True):
            _log_track(stream, predicted, track, "recorded", _RECORDED)
    if crash is not None:
        at = {track.name: track.poses[crash.step, :2] for track in tracks}
        place = (at[EGO] + at.get(crash.name or EGO, at[EGO])) / 2
        _at(stream, predicted, crash.step)
        mark = rr.Points3D(
            _raised(place[None], _HEIGHT_M + 0.5), colors=[_CRASH], radii=0.4, labels=[crash.text]
        )
        stream.log("world/crash", mark)


def _log_track(
    stream: Any, predicted: Predicted, track: Track, kind: str, colour: tuple[int, ...]
) -> None:
    """Log a box that moves, and its path."""
    entity = f"world/{kind}/{track.name}"
    label = track.name.replace("_", " ") if kind == "predicted" else f"{kind} {track.name}"
    for step, (pose, (length, width)) in enumerate(zip(track.poses, track.sizes, strict=True)):
        _at(stream, predicted, step)
        if not track.is_there[step]:
            stream.log(entity, rr.Clear(recursive=False))
            continue
        box = rr.Boxes3D(
            sizes=[(length, width, _HEIGHT_M)],
            centers=_raised(pose[None, :2], _HEIGHT_M / 2),
            rotation_axis_angles=[rr.RotationAxisAngle((0, 0, 1), radians=pose[2])],
            colors=[colour],
            labels=[label],
        )
        stream.log(entity, box)
    path = _raised(track.poses[track.is_there, :2])
    stream.log(f"{entity}/path", rr.LineStrips3D([path], colors=[colour], radii=0.08), static=True)


def _member_paths(predicted: Predicted, places: Places) -> dict[str, list[Floats]]:
    """Return the path that each member predicts for each road user [E][H+1, 3]."""
    paths: dict[str, list[Floats]] = {}
    for states in predicted.members:
        for track in places.tracks(states, predicted.given.actions):
            paths.setdefault(track.name, []).append(_raised(track.poses[:, :2]))
    return paths


def _log_features(stream: Any, predicted: Predicted) -> None:
    """Log each state feature as a curve, of a model that is none of a vehicle among road users."""
    recorded = predicted.given.recorded
    for column, feature in enumerate(predicted.spec.state):
        kinds = {"predicted": predicted.states}
        if recorded is not None:
            kinds["recorded"] = recorded.states
        for kind, states in kinds.items():
            for step, value in enumerate(states[:, column]):
                _at(stream, predicted, step)
                stream.log(["state", feature.name, kind], rr.Scalars(float(value)))


def _log_numbers(stream: Any, predicted: Predicted) -> None:
    """Log what each step has as curves, beside the limits."""
    verdict = predicted.verdict
    curves: dict[str, list[float | None]] = {
        "crash_probability/until_step": verdict.crash_probability_by_step,
        "crash_probability/at_step": [float(x) for x in predicted.dones],
        "reward": [float(x) for x in predicted.rewards],
    }
    limits = {
        "crash_probability/threshold": verdict.threshold,
        "uncertainty/of_sequence": verdict.uncertainty,
        "uncertainty/limit": predicted.limits.uncertainty_limit,
    }
    for name, limit in limits.items():
        curves[name] = [limit] * len(predicted.dones)
    for name, values in curves.items():
        for step, value in enumerate(values, 1):
            if value is not None:
                _at(stream, predicted, step)
                stream.log(name, rr.Scalars(value))


def _log_verdict(stream: Any, predicted: Predicted, crash: Crash | None) -> None:
    headline, *lines = verdict_lines(predicted)
    text = "\n".join([f"# {headline}", "", *(f"- {line}" for line in lines)])
    stream.log("verdict", rr.TextDocument(text, media_type="text/markdown"), static=True)
    _at(stream, predicted, 0)
    level = _LEVELS[predicted.verdict.verdict]
    for line in (headline, *lines):
        stream.log("log", rr.TextLog(line, level=level))
    if crash is not None:
        _at(stream, predicted, crash.step)
        stream.log("log", rr.TextLog(crash.text, level="ERROR"))


def _raised(points: Floats, height_m: float = 0.0) -> Floats:
    """Return points [..., 2] at a height, [..., 3]."""
    return np.concatenate([points, np.full((*points.shape[:-1], 1), height_m)], axis=-1)
