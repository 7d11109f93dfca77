"""What the scheduler tells to whoever counts; it knows no metrics itself."""

from __future__ import annotations

from typing import Protocol

REJECTIONS = ("queue_full", "too_late", "expired", "cancelled", "draining", "engine_down")
"""Why a job got no answer: label values of the rejection counter."""

ENGINE_FAULTS = ("exception", "bad_output", "non_finite", "out_of_memory", "canary")
"""Kinds of engine faults: label values of the error counter."""


class Observer(Protocol):
    """Who wants to know; called on the event loop's thread."""

    def launched(self, rows: int, requests: int, seconds: float) -> None:
        """Note a launch that succeeded: its rows, the jobs that shared it, its time computing."""

    def rejected(self, reason: str) -> None:
        """Note a job without an answer, for one of `REJECTIONS`."""

    def engine_failed(self, kind: str) -> None:
        """Note an engine fault, one of `ENGINE_FAULTS`."""
