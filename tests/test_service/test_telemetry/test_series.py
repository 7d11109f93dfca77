"""Series of our own beside the library's: the same text from the same events, to its parser."""

from __future__ import annotations

import random
import threading
from typing import Any

import prometheus_client as library
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.series import Counts, Histogram

BOUNDS = (0.0001, 0.5, 1.0)
VALUES = [0.0, 0.0001, 0.00010001, 0.5, 0.75, 1.0, 1e-9, 3.25, 123456789.0]


def place(sample: Any) -> tuple[str, list[tuple[str, str]]]:
    return sample.name, sorted(sample.labels.items())


def content(text: str) -> list[Any]:
    return [
        (family.name, family.type, family.documentation, sorted(family.samples, key=place))
        for family in text_string_to_metric_families(text)
    ]


def text_of(series: Counts | Histogram) -> str:
    return "\n".join([*series.lines(), ""])


@pytest.fixture
def registry() -> library.CollectorRegistry:
    library.disable_created_metrics()  # type: ignore[no-untyped-call]
    return library.CollectorRegistry()


def test_counts_are_told_as_the_library_tells_them(registry: library.CollectorRegistry) -> None:
    known = [("/a", "200"), ("/a", "404"), ("/b", "200")]
    ours = Counts("hits", "Hits, by path.", ("path", "code"), known)
    theirs = library.Counter("hits", "Hits, by path.", ["path", "code"], registry=registry)
    for labels in known:
        theirs.labels(*labels)

    # The last one was not foreseen.
    for labels in [*random.Random(0).choices(known, k=50), ("/b", "304")]:
        ours.counts[labels] += 1
        theirs.labels(*labels).inc()

    assert content(text_of(ours)) == content(library.generate_latest(registry).decode())


@pytest.mark.parametrize("label", [None, "stage"])
def test_histograms_are_told_as_the_library_tells_them(
    registry: library.CollectorRegistry, label: str | None
) -> None:
    labels = {} if label is None else {label: "queue"}
    ours = Histogram("wait", "Time.", BOUNDS, label, labels.values() or ("",))
    theirs = library.Histogram("wait", "Time.", list(labels), buckets=BOUNDS, registry=registry)

    for value in VALUES:
        ours.series[labels.get("stage", "")].add(value)
        (theirs.labels(**labels) if labels else theirs).observe(value)

    assert content(text_of(ours)) == content(library.generate_latest(registry).decode())


def test_counts_may_be_read_while_they_grow() -> None:
    counts = Counts("hits", "Hits.", ("n",), [])
    is_over = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not is_over.is_set():
            seen.append(len(counts.lines()))

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(2000):
        counts.counts[str(n),] += 1
    is_over.set()
    reader.join()

    assert seen == sorted(seen)
    assert len(counts.lines()) == 2002
