"""The service reads bodies as a plain reference does: those of the corpus, and mutated ones.

When the fuzzer finds a body that they disagree about, it stays in the corpus for good:

    FUZZ_KEEP=1 python -m pytest tests/test_security/test_fuzz_bodies.py

writes it there, made as small as can be; give the file a name that says what is in it. A longer
run is `python -m tests.test_security.fuzz --minutes 10`.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.test_security.fuzz import Case, Fuzzer, corpus, keep, smallest, targets, verdicts
from tests.test_security.reference import FIELDS

FEW, MANY = 500, 10_000
"""Few are enough where tests are run thousands of times: tools/mutants.toml."""
TARGETS = targets()


@pytest.mark.parametrize("path", corpus(), ids=lambda path: path.stem)
def test_bodies_of_the_corpus_mean_what_the_reference_says(path: Path) -> None:
    cases = [Case(target, name, path.read_bytes()) for target in TARGETS for name in FIELDS]
    found = {f"{case.target.name} {case.endpoint}": verdicts(case)[1] for case in cases}

    assert {where: difference for where, difference in found.items() if difference} == {}


@pytest.mark.parametrize(("seed", "cases"), [(0, FEW), (1, MANY), (2, MANY)], ids=["0", "1", "2"])
def test_mutated_bodies_mean_what_the_reference_says(seed: int, cases: int) -> None:
    fuzzer = Fuzzer(seed)
    outcomes: Counter[bool] = Counter()
    for _ in range(cases):
        case = fuzzer.case()
        meaning, difference = verdicts(case)
        outcomes[meaning is None] += 1
        if difference:
            case = smallest(case)
            place = keep(case) if os.environ.get("FUZZ_KEEP") else "FUZZ_KEEP=1 keeps it"
            pytest.fail(
                f"{case.target.name} {case.endpoint} {case.body!r}: {verdicts(case)[1]} ({place})"
            )

    assert min(outcomes[True], outcomes[False]) > cases // 5
