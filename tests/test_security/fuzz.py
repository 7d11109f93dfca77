"""Mutated bodies, read by the service and by a plain reference: do both say the same?

    python -m tests.test_security.fuzz --minutes 10 --seed 7

runs for as long as wanted and writes each body that they disagree about into `corpus/`, made as
small as can be. Give it a better name there: `test_fuzz_bodies.py` reads all of them for good.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from models.highway import highway_spec
from models.road_users import road_users_spec
from service.errors import InvalidRequestError
from service.http.contract import Contract, Kind
from service.http.reading.bodies import BodyParser
from tests.fakes.engine import fake_spec
from tests.test_security.reference import FIELDS, OUTPUTS, Meaning, Reference, Refused

CORPUS = Path(__file__).parent / "corpus"
MAX_HORIZON, MAX_ROWS, MEMBERS = 4, 3, 5
LONGEST = 8192
"""Bytes of a fuzzed body. The service may refuse long ones for being written unusually."""
MOST_ERROR_BYTES = 16 * 1024
MOST_KEPT = 20
"""Bodies that one run by hand writes into the corpus."""
_VALID = 100
"""Valid bodies to begin with, for each endpoint of each target."""

NUMBERS = (
    *b"0 -0 -0.0 0.0 1 1.0 1e0 10E-1 0.1e+1 0.50 5e-1 -1 2 1.0000001 1.00000000000000001".split(),
    *b"-1.5 0.30000001192092896 1e-46 7e-46 1e-400 -1e-400 3.4028235e38".split(),
    *b"3.4028235677973366e38 3.5e38 1e39 -1e39 1e308 1e309 1e400 -1e400".split(),
    *b"9007199254740993 18446744073709551615 18446744073709551616 -9223372036854775809".split(),
    *b"123456789012345678901234567890 1e 1. .5 +1 01 -01 0x1 1_0 1e+ -".split(),
    b"9" * 310,
    b"9" * 5000,
    b"0." + b"0" * 330 + b"1",
    b"1" + b"0" * 60 + b"e-60",
)
WORDS = tuple(b"NaN Infinity -Infinity null true false nan [] {} [[]] [NaN] \"1\" ''".split())
MARKS = tuple(b'[ ] { } , : " \\ \\u0073 \\ud800 \\n \\/ \\" \xef\xbb\xbf \xff \x00 \x7f'.split())
SPACES = (b" ", b"\t", b"\n", b"\r\n", b"  \t", b"\x0b", b"\x0c", b"\xc2\xa0", b"\x85", b"")


class Target(NamedTuple):
    """A model's parser and its reference."""

    name: str
    parser: BodyParser
    reference: Reference


class Case(NamedTuple):
    """A body for an endpoint of a target."""

    target: Target
    endpoint: Kind
    body: bytes


def targets() -> tuple[Target, ...]:
    """Return a small model without neighbours, the bundled one's spec, and one with sizes."""
    return tuple(
        Target(
            spec.name,
            BodyParser(Contract(spec, MAX_HORIZON, MAX_ROWS, MEMBERS)),
            Reference(spec, MAX_HORIZON, MAX_ROWS, MEMBERS),
        )
        for spec in (fake_spec(), highway_spec(), road_users_spec())
    )


def verdicts(case: Case) -> tuple[Meaning | None, str]:
    """Return what a body means, None if it is to be refused, and how the service differs, if so."""
    target, endpoint, body = case
    try:
        meaning = target.reference.read(endpoint, body)
    except Refused:
        meaning = None
    try:
        return meaning, _difference(target.parser, endpoint, body, meaning)
    except Exception as error:  # noqa: BLE001 (whatever it raises is a difference)
        return meaning, f"raises {error!r}"


def _difference(parser: BodyParser, endpoint: Kind, body: bytes, meaning: Meaning | None) -> str:
    try:
        parsed = parser.read(endpoint, body)
    except InvalidRequestError as error:
        answer = orjson.dumps(error.body())
        if len(answer) > MOST_ERROR_BYTES:
            return f"the error has {len(answer)} bytes"
        return "" if meaning is None else f"refused: {error.message}"
    return "accepted" if meaning is None else ", ".join(_differing(parsed, meaning))


def _differing(parsed: Any, meaning: Meaning) -> Iterator[str]:
    for name in ("states", "actions"):
        wanted = np.array(getattr(meaning, name), np.float32)
        array = getattr(parsed, name)
        if (array.dtype, array.shape) != (wanted.dtype, wanted.shape):
            yield f"{name} {array.dtype} {array.shape}, not {wanted.shape}"
        elif array.tobytes() != wanted.tobytes():
            at = np.argwhere(array.view(np.uint32) != wanted.view(np.uint32))[0].tolist()
            yield f"{name}{at} is {array[tuple(at)]}, not {wanted[tuple(at)]}"
    included = "has_trajectory", "has_attribution"
    for name in ("is_single", "outputs", "threshold", *included, "members"):
        if getattr(parsed, name) != getattr(meaning, name):
            yield f"{name} {getattr(parsed, name)}, not {getattr(meaning, name)}"


class Fuzzer:
    """Makes bodies out of others, always the same ones for a seed.

    Args:
        seed: Of all choices.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._kept = [path.read_bytes() for path in corpus()]
        kinds = [(target, endpoint) for target in targets() for endpoint in FIELDS]
        self._valid = {kind: [self._valid_body(*kind) for _ in range(_VALID)] for kind in kinds}
        self._changes: tuple[Callable[[bytearray], None], ...] = (
            self._flip,
            self._insert,
            self._delete,
            self._duplicate,
            self._splice,
            self._renumber,
            self._renumber,
            self._space,
            self._space,
            self._escape,
            self._overwrite,
        )

    def case(self) -> Case:
        """Return the next body."""
        kind = self._random.choice(tuple(self._valid))
        is_kept = self._random.random() < 0.05
        body = bytearray(self._random.choice(self._kept if is_kept else self._valid[kind]))
        for _ in range(self._random.choice((0, 1, 1, 1, 2, 3, 5))):
            self._random.choice(self._changes)(body)
        return Case(*kind, bytes(body[:LONGEST]))

    def _valid_body(self, target: Target, endpoint: Kind) -> bytes:
        """Return a valid body, with its fields in any order."""
        choose, spec = self._random, target.reference.spec
        rows, steps = choose.randint(1, MAX_ROWS), choose.randint(1, MAX_HORIZON)
        state = [(f.low, f.high) for f in spec.state]
        action = [(f.low, f.high) for f in spec.action]
        batch = [rows] if choose.random() < 0.5 else []
        state_batch = [rows] if choose.random() < 0.5 and endpoint != "safety_check" else []
        fields = {"state": self._numbers(state, *state_batch)}
        if endpoint == "predict":
            fields["action"] = self._numbers(action, *batch)
        else:
            fields["actions"] = self._numbers(action, *batch, steps)
        if endpoint == "rollout" and choose.random() < 0.3:
            fields["outputs"] = orjson.dumps(choose.sample(OUTPUTS, choose.randint(1, 7)))
        if endpoint == "safety_check" and choose.random() < 0.3:
            fields["threshold"] = choose.choice(NUMBERS[:16])
        if endpoint == "safety_check" and choose.random() < 0.3:
            names = ["trajectory", "attribution"]
            fields["include"] = orjson.dumps(choose.sample(names, choose.randint(1, 2)))
        if endpoint != "predict" and choose.random() < 0.3:
            fields["members"] = choose.choice((b"1", b"2", b"3", b"4", *NUMBERS))
        if choose.random() < 0.2:
            fields["dt_s"] = b"%.9g" % spec.dt_s
        if choose.random() < 0.2:
            fields["frame"] = orjson.dumps(spec.frame)
        if choose.random() < 0.02:
            fields[choose.choice(("dt_s", "frame"))] = choose.choice((*NUMBERS, *WORDS))
        pairs = [b'"%b":%b' % (name.encode(), value) for name, value in fields.items()]
        choose.shuffle(pairs)
        if choose.random() < 0.03:
            pairs.append(choose.choice(pairs))
        return b"{%b}" % b",".join(pairs)

    def _numbers(self, ranges: list[tuple[float, float]], *shape: int) -> bytes:
        if shape:
            return b"[%b]" % b",".join(self._numbers(ranges, *shape[1:]) for _ in range(shape[0]))
        return b"[%b]" % b",".join(self._number(low, high) for low, high in ranges)

    def _number(self, low: float, high: float) -> bytes:
        choose = self._random
        if choose.random() < 0.3:
            return choose.choice((b"0", b"1", b"0.0", b"1.0", b"0.25", b"-0.0"))
        value = choose.uniform(low, high)
        return repr(value if choose.random() < 0.5 else float(np.float32(value))).encode()

    def _at(self, body: bytearray) -> int:
        return self._random.randint(0, len(body))

    def _range(self, body: bytearray) -> slice:
        start = self._at(body)
        return slice(start, start + self._random.choice((1, 1, 2, 4, 9, 40)))

    def _piece(self) -> bytes:
        pieces = self._random.choice((NUMBERS, WORDS, MARKS, SPACES))
        return self._random.choice(pieces)

    def _flip(self, body: bytearray) -> None:
        if body:
            body[self._random.randrange(len(body))] ^= 1 << self._random.randrange(8)

    def _insert(self, body: bytearray) -> None:
        at = self._at(body)
        body[at:at] = self._piece()

    def _overwrite(self, body: bytearray) -> None:
        body[self._range(body)] = self._piece()

    def _delete(self, body: bytearray) -> None:
        del body[self._range(body)]

    def _duplicate(self, body: bytearray) -> None:
        at = self._at(body)
        body[at:at] = body[self._range(body)]

    def _splice(self, body: bytearray) -> None:
        other = self._random.choice(self._random.choice(tuple(self._valid.values())))
        body[self._at(body) :] = other[self._random.randrange(len(other)) :]

    def _renumber(self, body: bytearray) -> None:
        """Write another number in a number's place."""
        starts = [i for i in range(1, len(body)) if body[i - 1] in b"[,:" and body[i] in b"-01234"]
        if starts:
            start = end = self._random.choice(starts)
            while end < len(body) and body[end] in b"0123456789.eE+-":
                end += 1
            body[start:end] = self._random.choice(NUMBERS)

    def _space(self, body: bytearray) -> None:
        """Put white space where JSON allows it, or what looks like it."""
        places = [i for i, byte in enumerate(body) if byte in b"[]{},:"]
        if places:
            at = self._random.choice(places) + self._random.randint(0, 1)
            body[at:at] = self._random.choice(SPACES)

    def _escape(self, body: bytearray) -> None:
        """Write a letter as an escape sequence."""
        places = [i for i, byte in enumerate(body) if byte in b"abcdefghijklmnopqrstuvwxyz_"]
        if places:
            at = self._random.choice(places)
            body[at : at + 1] = b"\\u%04x" % body[at]


def corpus() -> list[Path]:
    """Return the files of bodies that are read for good."""
    return sorted(path for path in CORPUS.iterdir() if path.suffix == ".json")


def smallest(case: Case) -> Case:
    """Return a shorter body that they still disagree about in the same direction."""

    def kind(case: Case) -> tuple[bool, str]:
        meaning, difference = verdicts(case)
        return meaning is None, difference[:8]

    wanted, size = kind(case), len(case.body) // 2
    while size:
        at = 0
        while at < len(case.body):
            shorter = case._replace(body=case.body[:at] + case.body[at + size :])
            if kind(shorter) == wanted:
                case = shorter
            else:
                at += size
        size //= 2
    return case


def keep(case: Case) -> Path:
    """Write a body into the corpus; return where."""
    name = f"{case.endpoint}-{hashlib.sha256(case.body).hexdigest()[:8]}.json"
    (CORPUS / name).write_bytes(case.body)
    return CORPUS / name


def main() -> None:
    """Fuzz for some minutes."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=1.0)
    options.add_argument("--seed", type=int, default=random.randrange(2**32))
    given = options.parse_args()
    fuzzer, seen, found = Fuzzer(given.seed), Counter[str](), set[bytes]()
    print(f"seed {given.seed}")
    ends_s = time.monotonic() + 60 * given.minutes
    while time.monotonic() < ends_s:
        case = fuzzer.case()
        meaning, difference = verdicts(case)
        seen["refused" if meaning is None else "accepted"] += 1
        if difference and len(found) < MOST_KEPT:
            small = smallest(case)
            found.add(small.body)
            print(f"{keep(small)} ({small.target.name}): {verdicts(small)[1]}\n  {small.body!r}")
    print(f"{dict(seen)}; {len(found)} bodies kept")


if __name__ == "__main__":
    main()
