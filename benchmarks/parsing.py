"""How long bodies hold the event loop: longest slice and total, for good and bad big bodies."""

from __future__ import annotations

import re
from functools import partial
from time import perf_counter

import click
import numpy as np
import orjson

from benchmarks.machine import describe_machine
from models.road_users import road_users_spec
from service.errors import InvalidRequestError
from service.http.contract import Contract, Kind
from service.http.reading.bodies import BodyParser

Body = tuple[Kind, bytes]

_NAMES = b'"state":[' + b",".join([b"1"] * 34) + b"]"
_STEPS = 64


@click.command()
@click.option("--mebibytes", default=8, help="Length of the bodies.")
@click.option("--repeats", default=5, help="What a slice takes is the least of so many times.")
def main(mebibytes: int, repeats: int) -> None:
    """Print a table of what slices of big bodies take, and then of what unusual spellings cost."""
    size = mebibytes * 2**20
    print(f"{describe_machine()}; {mebibytes} MiB, least of {repeats}\n")
    print("| body | answer | slices | longest, ms | total, ms |\n|---|---|---|---|---|")
    parser = BodyParser(Contract(road_users_spec(), max_horizon=_STEPS, max_rows=10**6))
    for name, (kind, body) in (_good(size) | _bad(size)).items():
        runs = [_sliced(parser, kind, body) for _ in range(repeats)]
        times_s = [min(same) for same in zip(*(times for _, times in runs), strict=True)]
        figures = f"{1e3 * max(times_s):.2f} | {1e3 * sum(times_s):.1f}"
        print(f"| {name} | {runs[0][0]} | {len(times_s)} | {figures} |")
    print(
        "\n| short body | plain, us | escaped | pretty | exponents | whole numbers of 26 digits |"
    )
    print("|---|---|---|---|---|---|")
    for name, (kind, body) in _short().items():
        costs = [_cost_us(parser, kind, spelt) for spelt in _spellings(body)]
        print(f"| {name}, {len(body)} bytes | " + " | ".join(f"{x:.1f}" for x in costs) + " |")


def _sliced(parser: BodyParser, kind: Kind, body: bytes) -> tuple[str, list[float]]:
    """Return the outcome, and the seconds that each slice took."""
    slices = parser.in_slices(kind, body)
    times_s: list[float] = []
    outcome = ""
    while not outcome:
        started = perf_counter()
        try:
            next(slices)
        except StopIteration:
            outcome = "read"
        except InvalidRequestError as error:
            outcome = error.message[:60]
        times_s.append(perf_counter() - started)
    return outcome, times_s


def _good(size: int) -> dict[str, Body]:
    rng = np.random.default_rng(0)
    rows = size // (_STEPS * 3 * 19)
    actions = rng.uniform(0, 1, (rows, _STEPS, 3))
    states = rng.uniform(0.5, 1, (size // (34 * 7), 34)).round(4).tolist()
    state = states[0]
    full = orjson.dumps({"state": state, "actions": actions.tolist()})
    return {
        "17 digits": ("rollout", full),
        "4 digits": (
            "rollout",
            orjson.dumps(
                {"state": state, "actions": np.tile(actions.round(4), (2, 1, 1)).tolist()}
            ),
        ),
        "states": ("predict", orjson.dumps({"state": states, "action": [0, 0, 0]})),
        "pretty": (
            "rollout",
            orjson.dumps(
                {"state": state, "actions": actions[: rows // 2].tolist()},
                option=orjson.OPT_INDENT_2,
            ),
        ),
        "escaped names": ("rollout", full.replace(b'"actions"', b'"\\u0061ctions"')),
        "numbers of 26 digits": (
            "predict",
            b'{"action":[0,0,0],"state":['
            + b",".join([b"[" + b",".join([b"1" + b"0" * 25] * 34) + b"]"] * (size // (34 * 27)))
            + b"]}",
        ),
    }


def _bad(size: int) -> dict[str, Body]:
    good = orjson.dumps(
        {"actions": np.full((size // (64 * 14), 64, 3), 0.5).tolist(), "state": [1] * 34}
    )
    end = good.rindex(b'],"state"')
    lists: dict[str, bytes] = {
        "NaN at the end": good[:end] + b",[[NaN,0,0]]" + good[end:],
        "a string at the end": good[:end] + b',"x"' + good[end:],
        "cut off": good[:end],
        "{} many times": b'{"state":[' + b"{}," * (size // 3),
        "[] many times": b'{"actions":[' + b"[]," * (size // 3),
        "null many times": b'{"actions":[' + b"null," * (size // 5),
        "digits": b'{"state":[' + b"1" * size,
        "numbers of one state": b'{"state":[' + b"1," * (size // 2),
        "blanks": b" " * size,
        "brackets": b'{"actions":' + b"[" * size,
        "a string": b'{"' + b"a" * size + b'":1}',
        "quotes": b'"' * size,
        "names in outputs": b'{"outputs":[' + b'"a",' * (size // 4) + b'"a"]}',
        "unknown fields": b"{" + b",".join(b'"%d":1' % i for i in range(size // 11)) + b"}",
        "a field many times": b"{" + _NAMES + (b"," + _NAMES) * (size // 78) + b"}",
    }
    return {name: ("rollout", body) for name, body in lists.items()}


def _short() -> dict[str, Body]:
    rng = np.random.default_rng(0)
    state = rng.uniform(0.5, 1, 34).round(4).tolist()
    actions = rng.uniform(0, 1, (64, 20, 3)).round(4)
    return {
        "a prediction": ("predict", orjson.dumps({"state": state, "action": [0.5, 0.5, 0.5]})),
        "64 sequences of 20": (
            "rollout",
            orjson.dumps({"state": state, "actions": actions.tolist()}),
        ),
    }


def _spellings(body: bytes) -> list[bytes]:
    document = orjson.loads(body)
    whole = body.replace(b'"state":[', b'"state":[1' + b"0" * 25 + b",", 1)
    end = whole.index(b"]")
    whole = whole[: whole.rindex(b",", 0, end)] + whole[end:]
    return [
        body,
        body.replace(b'"state"', b'"\\u0073tate"'),
        orjson.dumps(document, option=orjson.OPT_INDENT_2),
        re.sub(rb"0\.(\d*[1-9])", _with_exponent, body),
        whole,
    ]


def _with_exponent(fraction: re.Match[bytes]) -> bytes:
    digits = fraction[1]
    return b"%be-%d" % (digits.lstrip(b"0"), len(digits))


def _cost_us(parser: BodyParser, kind: Kind, body: bytes) -> float:
    """Return the microseconds that a short body takes, at best."""
    read = partial(parser.read, kind)
    read(body)
    count = max(10, 200_000 // len(body))
    times_s = []
    for _ in range(15):
        started = perf_counter()
        for _ in range(count):
            read(body)
        times_s.append(perf_counter() - started)
    return 1e6 * min(times_s) / count


if __name__ == "__main__":
    main()
