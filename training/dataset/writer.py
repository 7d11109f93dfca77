"""Writes episodes of any spec to disk, in the format of `training.dataset.episodes`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import save_file

from models.slots import EmptySlots
from models.spec import Spec
from training.dataset.episodes import (
    FORMAT,
    SLOT_IDS,
    TRUE_STATES,
    VERSION,
    EpisodeError,
    faults_in,
)
from training.dataset.store import MANIFEST, shard_path, write_document
from training.running.files import holds_only_locks
from training.running.locks import LOCK, locked

_SHARD_FRAMES = 2**17
_ACTION = "writing episodes"


class EpisodeWriter:
    """Writes episodes into a new folder; a context manager, whose end finishes the data set.

    Args:
        folder: Made if missing; must be empty.
        spec: Meaning of the features.
        origin: Where the episodes come from, for people.
        recordings: If they were made of recorded traffic: the SHA-256 sums of its files, by name.
            They say that the episodes are of no simulator.

    Raises:
        EpisodeError: The folder is not empty, or the spec is none.
        FolderLockedError: Another writer or command writes the folder; `with` may raise it, too.
    """

    def __init__(
        self,
        folder: Path | str,
        spec: Spec,
        *,
        origin: str = "",
        recordings: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = Path(folder)
        if not isinstance(spec, Spec):
            raise EpisodeError(
                f"spec is a {type(spec).__name__}, but must be a Spec, as "
                "models.checkpoint.read_spec reads it from a file"
            )
        if (self._folder / LOCK).exists():
            with locked(self._folder, _ACTION):  # who removes an unfinished one must not meet it
                self._refuse_existing()
        self._refuse_existing()
        self._lock = ExitStack()
        self._is_open = False
        self._spec = spec
        self._origin = origin
        self._recordings = {} if recordings is None else {"recordings": {**recordings}}
        self._empty_slots = EmptySlots(spec)
        self._slots = len(spec.geometry.slots) if spec.geometry else 0
        self._given: frozenset[str] | None = None
        """The optional arrays that all episodes have."""
        self._waiting: list[dict[str, NDArray[Any]]] = []
        self._frames = 0
        """In what waits."""
        self._paths: list[Path] = []
        self.episodes = 0
        self._steps = 0
        self._ended = 0

    def __enter__(self) -> Self:
        with ExitStack() as lock:
            lock.enter_context(locked(self._folder, _ACTION))
            if not self._paths:
                self._refuse_existing()
            self._lock = lock.pop_all()
        self._is_open = True
        return self

    def _refuse_existing(self) -> None:
        if not self._folder.exists() or holds_only_locks(self._folder):
            return
        is_cut_short = not (self._folder / MANIFEST).exists()
        what = "holds an unfinished data set or other files" if is_cut_short else "is not empty"
        raise EpisodeError(f"{self._folder} {what}: remove it, or name another folder")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._is_open = False
        with self._lock:
            if kind is None:
                self._finish()

    def add(
        self,
        states: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        *,
        ended: bool | np.bool_,
        slot_ids: ArrayLike | None = None,
        true_states: ArrayLike | None = None,
    ) -> None:
        """Add an episode of T steps.

        Args:
            states: [T + 1, S], physical units, within the ranges of the spec's features.
            actions: [T, A], likewise; `actions[k]` leads from `states[k]` to `states[k + 1]`.
            rewards: [T].
            ended: Whether the last state is an end, like a crash; False if only the recording
                ended.
            slot_ids: [T + 1, slots] whole numbers: who is in each neighbour slot, below 0 if
                nobody is. Without them a slot is taken for one neighbour throughout an episode.
                All episodes have them, or none.
            true_states: [T + 1, S]: what the states were in truth, if `states` are what was
                measured at the moment, with its noise and lag. Training and evaluation start in
                `states`, and compare predictions with these. A slot holds the same neighbour in
                both. All episodes have them, or none.

        Raises:
            EpisodeError: Something does not fit; the message names it. Nothing is added.
        """
        number = f"episode {self.episodes}"
        if not self._is_open:
            raise EpisodeError(
                f"{number}: the writer is not open: `with EpisodeWriter(...) as writer:` opens it, "
                "and finishes the data set at the end of the block"
            )
        if not isinstance(ended, bool | np.bool_):
            raise EpisodeError(f"{number}: ended is {ended!r}, but must be one True or False")
        if slot_ids is not None and not self._slots:
            raise EpisodeError(f"{number}: slot_ids are given, but the spec has no neighbour slots")
        spec = self._spec
        optional = {SLOT_IDS: slot_ids, TRUE_STATES: true_states}
        names = frozenset(name for name, values in optional.items() if values is not None)
        if self._given is not None and self._given != names:
            name = min(self._given ^ names)
            raise EpisodeError(f"{number}: {name} must be given for all episodes or for none")
        given = {
            "states": _array("states", states, (None, spec.state_dim), number),
            "actions": _array("actions", actions, (None, spec.action_dim), number),
            "rewards": _array("rewards", rewards, (None,), number),
        }
        steps = len(given["actions"])
        if slot_ids is not None:
            given[SLOT_IDS] = _array(SLOT_IDS, slot_ids, (None, self._slots), number, np.int64)
        if true_states is not None:
            given[TRUE_STATES] = _array(TRUE_STATES, true_states, (None, spec.state_dim), number)
        counts = {"states": steps + 1, "rewards": steps, **dict.fromkeys(optional, steps + 1)}
        for name, count in counts.items():
            if name in given and len(given[name]) != count:
                raise EpisodeError(
                    f"{number}: {name} has {len(given[name])} rows, but {count} belong to "
                    f"{steps} actions"
                )
        if not steps:
            raise EpisodeError(f"{number}: it has no step")
        for name in {"states", TRUE_STATES} & given.keys():
            given[name] = self._empty_slots.cleared(np.ascontiguousarray(given[name]))
        for name in ("actions", "rewards"):
            given[name] = np.concatenate([given[name], np.zeros_like(given[name][:1])])
        for fault in faults_in(given, spec, np.array([steps])):
            raise EpisodeError(f"{number}: {fault}")
        self._given = names
        self._waiting.append({**given, "terminated": np.array([ended], np.uint8)})
        self.episodes += 1
        self._steps += steps
        self._ended += bool(ended)
        self._frames += steps + 1
        if self._frames >= _SHARD_FRAMES:
            self._write()

    def _write(self) -> None:
        counts = [len(x["states"]) for x in self._waiting]
        arrays = {
            name: np.ascontiguousarray(np.concatenate([x[name] for x in self._waiting]))
            for name in self._waiting[0]
        }
        arrays["frame_start"] = np.cumsum([0, *counts[:-1]], dtype=np.int64)
        arrays["frame_count"] = np.array(counts, np.int64)
        path = shard_path(self._folder, len(self._paths))
        save_file(arrays, path)
        self._paths.append(path)
        self._waiting = []
        self._frames = 0

    def _finish(self) -> None:
        if self._waiting:
            self._write()
        if not self._paths:
            raise EpisodeError(f"{self._folder}: no episode was added")
        counts = {"episodes": self.episodes, "steps": self._steps, "ended": self._ended}
        write_document(
            self._folder,
            self._paths,
            {
                "format": FORMAT,
                "version": VERSION,
                "origin": self._origin,
                **self._recordings,
                "spec": self._spec.to_json(),
                "counts": counts,
            },
        )


def _array(
    name: str,
    values: ArrayLike | None,
    shape: tuple[int | None, ...],
    number: str,
    kind: type[np.generic] = np.float32,
) -> NDArray[Any]:
    """Return an array of a shape, of which None stands for any length."""
    wanted = f"[{', '.join('T' if x is None else str(x) for x in shape)}]"
    try:
        array = np.asarray(values)
        is_number = array.dtype.kind in ("iu" if kind is np.int64 else "iuf")
    except (TypeError, ValueError) as exc:
        raise EpisodeError(f"{number}: {name} are no numbers of shape {wanted}: {exc}") from exc
    fits = array.ndim == len(shape) and all(
        w in (None, n) for w, n in zip(shape, array.shape, strict=True)
    )
    if not fits or not is_number:
        raise EpisodeError(
            f"{number}: {name} are {array.dtype} of shape {list(array.shape)}, but must be "
            f"{'whole numbers' if kind is np.int64 else 'numbers'} of shape {wanted}"
        )
    with np.errstate(over="ignore"):
        return array.astype(kind)
