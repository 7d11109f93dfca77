"""Sources of tracks to one data set."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.dataset.writer import EpisodeWriter
from training.recordings.columns import SUFFIXES
from training.recordings.commonroad import SUFFIX, read_commonroad
from training.recordings.egos import Episode, Options, Scene
from training.recordings.layouts import target_of
from training.recordings.recording import Recording, RecordingError, Unused
from training.recordings.tables import read_table
from training.running.progress import Progress
from world_model_client.scene import ISO8855
from world_model_client.scene.frames import number


@dataclass
class Imported:
    """What was made of sources.

    Attributes:
        egos: Road users that were the ego.
        episodes: Of all egos.
        steps: Of all episodes.
        endings: Episodes that ended, by cause.
        impossible: Steps that no actions explain exactly.
        unused: What could not be used.
    """

    egos: int = 0
    episodes: int = 0
    steps: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    impossible: int = 0
    unused: Unused = field(default_factory=Unused)

    def text(self, dt_s: float) -> str:
        """Return it for a person, several lines."""
        ended = ", ".join(f"{count} by {cause}" for cause, count in self.endings.items())
        lines = [
            f"{self.episodes} episodes of {self.egos} egos, {self.steps} steps "
            f"({self.steps * dt_s / 60:.1f} minutes); {self.endings.total()} end"
            f"{f' ({ended})' if ended else ''}",
            f"{self.impossible} steps ({self.impossible / max(self.steps, 1):.1%}) that no action "
            "explains exactly: the nearest one stands there",
        ]
        found = self.unused.lines()
        return "\n".join([*lines, *(["Not used:"] if found else []), *(f"- {x}" for x in found)])


def import_tracks(
    sources: Sequence[Path],
    out: Path,
    *,
    spec: str | None = None,
    road: Path | None = None,
    frame: str = ISO8855,
    options: Options | None = None,
    share: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Imported, float]:
    """Make episodes of recorded tracks.

    Args:
        sources: CommonRoad scenarios and tables, by their suffix.
        out: Folder of the data set; must be empty, or not there.
        spec: What states are made for, see `layouts.target_of`.
        road: Of the tables: a description of their roads; None: the file beside each, if any.
        frame: Of the tables.
        options: How episodes are made.
        share: Of the vehicles that can be the ego, so many are, at random; above 0, to 1.
        seed: Decides which.
        progress: Whether to show how far it is.

    Returns:
        What was made, and the length of a step in s.

    Raises:
        RecordingError: A source cannot be read or is given twice, or of all of them no episode can
            be made.
        EpisodeError: The folder is not empty.
        FolderLockedError: Another command writes the folder.
        InvalidInputError: The share is none.
    """
    number("share", share, 0, 1, is_open=True)
    for source in sources:
        if source.suffix not in (SUFFIX, *SUFFIXES):
            raise RecordingError(
                f"{source} is no recording (allowed: {SUFFIX} of CommonRoad, or a table, "
                f"{' or '.join(SUFFIXES)})"
            )
        if not source.is_file():
            raise RecordingError(f"{source} is no file")
    target, options, made = target_of(spec), options or Options(), Imported()
    digests, labels = _digests(sources), labels_of(sources)
    names = ", ".join(labels)
    kind = "as known at the moment, by the client's filter" if options.is_causal else "smoothed"
    shown = Progress("importing", float(len(sources)), is_shown=progress)
    writer = EpisodeWriter(
        out,
        target.spec,
        origin=f"tracks of {names}; states {kind}",
        recordings=dict(zip(labels, digests, strict=True)),
    )
    with shown, writer:
        rng = np.random.default_rng(seed)
        for source, label in zip(sources, labels, strict=True):
            unused = Unused()
            scene = Scene(_read(source, unused, road, frame), target, options, unused)
            everybody = np.array(scene.candidates(), np.intp)
            count = min(len(everybody), max(1, round(share * len(everybody))))
            egos = np.sort(rng.permutation(everybody)[:count])
            with shown.stretch(1.0) as on_share:
                for done, ego in enumerate(egos.tolist(), 1):
                    made.egos += _write(scene.episodes(ego), writer, made, options)
                    on_share(done / len(egos))
            made.unused.take(unused, label)
        if not made.episodes:
            raise RecordingError(
                f"no episode can be made of {names}: "
                f"{'; '.join(made.unused.lines()) or 'no tracks'}"
            )
    return made, target.spec.dt_s


def labels_of(sources: Sequence[Path]) -> list[str]:
    """Return the names of files, with as many of their folders as tell them apart."""
    parts = [source.resolve().parts for source in sources]
    counts = [1] * len(parts)
    while True:
        labels = ["/".join(each[-count:]) for each, count in zip(parts, counts, strict=True)]
        times = Counter(labels)
        longer = [
            count + (times[label] > 1 and count < len(each))
            for label, count, each in zip(labels, counts, parts, strict=True)
        ]
        if longer == counts:
            return labels
        counts = longer


def _digests(sources: Sequence[Path]) -> list[str]:
    """Return the SHA-256 sums of files.

    Raises:
        RecordingError: Two are the same, or one cannot be read.
    """
    found: dict[str, Path] = {}
    for source in sources:
        digest = _digest(source)
        if digest in found:
            raise RecordingError(
                f"{source} is given twice, or is a copy of {found[digest]}: its episodes would "
                "count twice (allowed: each recording once)"
            )
        found[digest] = source
    return list(found)


def _digest(source: Path) -> str:
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise RecordingError(f"{source} cannot be read: {exc.strerror}") from exc


def _read(source: Path, unused: Unused, road: Path | None, frame: str) -> Recording:
    if source.suffix == SUFFIX:
        return read_commonroad(source, unused)
    return read_table(source, unused, road=road, frame=frame)


def _write(
    episodes: Iterable[Episode], writer: EpisodeWriter, made: Imported, options: Options
) -> bool:
    """Write the episodes of an ego, and return whether there are any."""
    before = made.episodes
    for episode in episodes:
        writer.add(
            episode.states,
            episode.actions,
            episode.rewards,
            ended=bool(episode.ending),
            slot_ids=episode.slot_ids,
            true_states=episode.true_states if options.is_causal else None,
        )
        made.episodes += 1
        made.steps += len(episode.actions)
        made.impossible += episode.impossible
        if episode.ending:
            made.endings[episode.ending] += 1
    return made.episodes > before
