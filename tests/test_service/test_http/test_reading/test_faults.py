"""What is wrong with a body is named to the letter: each fault, its place, what is allowed."""

from __future__ import annotations

import pytest

from service.errors import InvalidRequestError
from service.http.contract import Kind
from tests.test_service.test_http.test_reading.test_walk import CUTTING, at_once, sliced

OUTPUTS = "states, rewards, dones, returns, crash_probability, uncertainty, final_state"
LARGEST = "up to 3.4028235677973362e+38"


@pytest.mark.parametrize(
    ("kind", "body", "faults"),
    [
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[0,0]],"outputs":{"a":[1,{"b":2}]},"x":1}',
            [
                ("outputs", "must be a list of names, is an object"),
                ("x", "is not a known field", "state, actions, outputs, members, dt_s, frame"),
            ],
        ),
        (
            "safety_check",
            '{"state":[1,2,3],"actions":[[0,0]],"threshold":[0.5,[1]],"include":{},"y":[]}',
            [
                ("threshold", "must be a single value, is a list"),
                ("include", "must be a list of names, is an object"),
                (
                    "y",
                    "is not a known field",
                    "state, actions, threshold, include, members, dt_s, frame",
                ),
            ],
        ),
        *(
            (
                "safety_check",
                f'{{"state":[1,2,3],"actions":[[0,0]],"{field}":{value}}}',
                [(field, "must be a single value, is a list")],
            )
            for field in ("threshold", "members", "dt_s", "frame")
            for value in ("[]", '["a"]', "[0.1]")
        ),
        (
            "safety_check",
            '{"state":[1,2,3],"actions":[[0,0]],"threshold":{"a":1}}',
            [("threshold", "must be a single value, is an object")],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[0,0]],"outputs":["states",["a",["b"]],{"c":1},"returns"],"z":null}',
            [
                ("outputs[1]", "must be a name, is a list"),
                ("outputs[2]", "must be a name, is an object"),
                ("z", "is not a known field", "state, actions, outputs, members, dt_s, frame"),
            ],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[0,0]],"outputs":["a","states",2]}',
            [
                ("outputs[0]", "is not a known name", OUTPUTS),
                ("outputs[2]", "is not a known name", OUTPUTS),
            ],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[0,0]],"outputs":3}',
            [("outputs", "must be a list of at least one name", OUTPUTS)],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[0,0]],"outputs":["states",]}',
            [("body", 'is not JSON: unexpected "]" at byte 55')],
        ),
        (
            "safety_check",
            '{"state":[1,2,3],"actions":[[0,0]],"include":["trajectory","x"]}',
            [("include[1]", "is not a known name", "trajectory, attribution")],
        ),
        (
            "safety_check",
            '{"state":[1,2,3],"actions":[[0,0]],"include":[]}',
            [("include", "must be a list of at least one name", "trajectory, attribution")],
        ),
        (
            "safety_check",
            '{"state":[1,2,3],"actions":[[0,0]],"threshold":1.5}',
            [("threshold", "is not a probability", "a number from 0 to 1")],
        ),
        (
            "safety_check",
            '{"state":[1,2,3],"actions":[[0,0]],"threshold":-0.1}',
            [("threshold", "is not a probability", "a number from 0 to 1")],
        ),
        (
            "safety_check",
            '{"state":[1,2,3],"actions":[[0,0]],"threshold":"0.5"}',
            [("threshold", "is not a probability", "a number from 0 to 1")],
        ),
        (
            "safety_check",
            '{"state":[1,2,3],"actions":[[0,0]],"threshold":NaN}',
            [("threshold", "is not a probability", "a number from 0 to 1")],
        ),
        (
            "safety_check",
            '{"state":[[1,2,3]],"actions":[[0,0]]}',
            [("state", "is a list of states", "one state: a list of numbers")],
        ),
        (
            "rollout",
            '{"state":[[1,2,3],[1,2,3]],"actions":[[[0,0]],[[0,0]],[[0,0]]]}',
            [
                (
                    "actions",
                    "has 3 rows, state has 2",
                    "as many rows as state, or one side without rows",
                )
            ],
        ),
        (
            "predict",
            '{"state":[[1,2,3],[1,2,3]],"action":[[0,0],[0,0],[0,0]]}',
            [
                (
                    "action",
                    "has 3 rows, state has 2",
                    "as many rows as state, or one side without rows",
                )
            ],
        ),
        ("predict", "{}", [("state", "is missing"), ("action", "is missing")]),
        (
            "safety_check",
            '{"a":[[1],{"b":[]}],"state":[1,2,3]}',
            [
                (
                    "a",
                    "is not a known field",
                    "state, actions, threshold, include, members, dt_s, frame",
                ),
                ("actions", "is missing"),
            ],
        ),
        (
            "predict",
            '{"state":{"a":[1]},"action":"x"}',
            [
                ("state", "must be a list of state features, is an object"),
                ("action", "must be a list of action features, is a string"),
            ],
        ),
        (
            "predict",
            '{"state":[1,2,3],"action":[0,0],"state":[1],"action":{}}',
            [("state", "is given twice"), ("action", "is given twice")],
        ),
        (
            "predict",
            '{"state":[1,[2,[3]],{"a":4},true,false],"action":[null,"0"]}',
            [
                ("state[1]", "must be a number, is a list"),
                ("state[2]", "must be a number, is an object"),
                ("state", "has more than 3 state features", "3 state features"),
                ("action[0]", "must be a number, is null"),
                ("action[1]", "must be a number, is a string"),
            ],
        ),
        (
            "predict",
            '{"state":[[1,2],[1,2,3,4],7,[[1],2,3],[1,2,3],[1,2,3]],"action":[2,-2]}',
            [
                ("state[0]", "has 2 state features", "3 state features"),
                ("state[1]", "has more than 3 state features", "3 state features"),
                ("state[2]", "must be a list of state features, is a number"),
                ("state", "has more than 3 rows", "1 to 3 rows"),
                ("action[0]", "push is 2", "-1 to 1"),
                ("action[1]", "lift is -2", "0 to 1"),
            ],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[0,0],[0,0],[0,0],[0,0],[0,0],["a",0]]}',
            [("actions", "has more than 4 steps", "1 to 4 steps")],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[[0,0],[0,0]],[[0,0]],[[0,0],[0,0],[0,0]],[[0,9]],[[0,0]]]}',
            [
                ("actions[1]", "has 1 steps, actions[0] has 2"),
                ("actions[2]", "has more than 2 steps, actions[0] has 2"),
                ("actions", "has more than 3 sequences", "1 to 3 sequences"),
            ],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[[0,0],[0,9]],[[0,0]],[[0,0],[0,0],[0,0]]]}',
            [
                ("actions[0][1][1]", "lift is 9", "0 to 1"),
                ("actions[1]", "has 1 steps, actions[0] has 2"),
                ("actions[2]", "has more than 2 steps, actions[0] has 2"),
            ],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[[0,0],[0,0]],[[0,0],[-1.5,0]]]}',
            [("actions[1][1][0]", "push is -1.5", "-1 to 1")],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[[0,0],[0,0],[0,0],[0,0],[0,0]],[[0,0]]]}',
            [("actions[0]", "has more than 4 steps", "1 to 4 steps")],
        ),
        ("rollout", '{"state":[1,2,3],"actions":[]}', [("actions", "has 0 steps", "1 to 4 steps")]),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[[]],[]]}',
            [
                ("actions[0][0]", "has 0 action features", "2 action features"),
                ("actions[1]", "has 0 steps", "1 to 4 steps"),
            ],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[5,"a",null,true]}',
            [
                ("actions[0]", "must be a list of action features, is a number"),
                ("actions[1]", "must be a list of action features, is a string"),
                ("actions[2]", "must be a list of action features, is null"),
                ("actions[3]", "must be a list of action features, is a boolean"),
            ],
        ),
        (
            "rollout",
            '{"state":[1e39,-1e39,NaN],"actions":[[Infinity,-Infinity]]}',
            [
                ("state[0]", "is 1e+39, not a finite number of 32 bits", LARGEST),
                ("state[1]", "is -1e+39, not a finite number of 32 bits", LARGEST),
                ("state[2]", "is NaN, not a finite number of 32 bits", LARGEST),
                ("actions[0][0]", "is Infinity, not a finite number of 32 bits", LARGEST),
                ("actions[0][1]", "is -Infinity, not a finite number of 32 bits", LARGEST),
            ],
        ),
        (
            "rollout",
            '{"state":[1e0000000000000000000999,1e000000000000000000999,1e00000000000000000999],"actions":[[0,0]]}',
            [
                (
                    "state[0]",
                    "is 1e0000000000000000000999, not a finite number of 32 bits",
                    LARGEST,
                ),
                ("state[1]", "is 1e000000000000000000999, not a finite number of 32 bits", LARGEST),
                ("state[2]", "is 1e00000000000000000999, not a finite number of 32 bits", LARGEST),
            ],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[1.0000001,-1e-9],[-1.0000001,1.5]]}',
            [
                ("actions[0][0]", "push is 1.0000001", "-1 to 1"),
                ("actions[0][1]", "lift is -1e-09", "0 to 1"),
                ("actions[1][0]", "push is -1.0000001", "-1 to 1"),
                ("actions[1][1]", "lift is 1.5", "0 to 1"),
            ],
        ),
        (
            "predict",
            '{"a":}',
            [
                ("a", "is not a known field", "state, action, dt_s, frame"),
                ("body", 'is not JSON: unexpected "}" at byte 5'),
            ],
        ),
        (
            "predict",
            '{"a":1 "b":2}',
            [
                ("a", "is not a known field", "state, action, dt_s, frame"),
                ("body", 'is not JSON: unexpected """ at byte 7'),
            ],
        ),
        (
            "predict",
            '{"a":1,,"b":2}',
            [
                ("a", "is not a known field", "state, action, dt_s, frame"),
                ("body", 'is not JSON: unexpected "," at byte 7'),
            ],
        ),
        (
            "predict",
            '{"x":[1,2}',
            [
                ("x", "is not a known field", "state, action, dt_s, frame"),
                ("body", "is not JSON: ends too early, after 10 bytes"),
            ],
        ),
        (
            "predict",
            '{"x":[1,2],"state":[1',
            [
                ("x", "is not a known field", "state, action, dt_s, frame"),
                ("body", "is not JSON: ends too early, after 21 bytes"),
            ],
        ),
        (
            "predict",
            '{"state":[1,2,3],"action":[0,0],"x":"\\ud800"}',
            [("x", "is not a known field", "state, action, dt_s, frame")],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[0,0]],"outputs":["\\ud800"]}',
            [("body", "is not JSON: the string at byte 46 is not valid UTF-8 text")],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[[0,9],[0,0],[0,0],[0,0]],[[0,0]]]}',
            [
                ("actions[0][0][1]", "lift is 9", "0 to 1"),
                ("actions[1]", "has 1 steps, actions[0] has 4"),
            ],
        ),
        (
            "rollout",
            '{"state":[1,2,3],"actions":[[[0,0],[0,0]],[[0,0],[0,0]],[[0,0],[null,0]],[[0,0],[0,0]]]}',
            [
                ("actions[2][1][0]", "must be a number, is null"),
                ("actions", "has more than 3 sequences", "1 to 3 sequences"),
            ],
        ),
        (
            "predict",
            '{"state":[3.4028235677973362e38,-3.4028235677973362e38,null],"action":[0,0]}',
            [("state[2]", "must be a number, is null")],
        ),
        (
            "predict",
            '{"a":😀}',
            [
                ("a", "is not a known field", "state, action, dt_s, frame"),
                ("body", 'is not JSON: unexpected "😀" at byte 5'),
            ],
        ),
        (
            "predict",
            '{"a":é}',
            [
                ("a", "is not a known field", "state, action, dt_s, frame"),
                ("body", 'is not JSON: unexpected "é" at byte 5'),
            ],
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_faults_are_named_in_order(kind: Kind, body: str, faults: list[tuple[str, ...]]) -> None:
    results = [sliced(parser, kind, body.encode())[0] for parser in CUTTING.values()]
    results.append(at_once(CUTTING[2**15], kind, body.encode()))
    expected = [dict(zip(("field", "problem", "allowed"), x, strict=False)) for x in faults]

    for error in results:
        assert isinstance(error, InvalidRequestError)
        assert error.details == expected


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("[1,2]", "must be a JSON object, is a list"),
        ('"x"', "must be a JSON object, is a string"),
        ("7", "must be a JSON object, is a number"),
        ("true", "must be a JSON object, is a boolean"),
        ("null", "must be a JSON object, is null"),
        ("NaN", "must be a JSON object, is NaN"),
        ("}", 'is not JSON: unexpected "}" at byte 0'),
        (":", 'is not JSON: unexpected ":" at byte 0'),
        ('{"a" 1}', 'is not JSON: unexpected "1" at byte 5'),
        ("{1:2}", 'is not JSON: unexpected "1" at byte 1'),
        ("{[]:1}", 'is not JSON: unexpected "[" at byte 1'),
        ('{"state":[1,2,3] "action":[0,0]}', 'is not JSON: unexpected """ at byte 17'),
        ('{"state":[1 2,3],"action":[0,0]}', 'is not JSON: unexpected "2" at byte 12'),
        ('{"state":[1,:,3],"action":[0,0]}', 'is not JSON: unexpected ":" at byte 12'),
        ('{"state":],"action":[0,0]}', 'is not JSON: unexpected "]" at byte 9'),
        ('{"state":[1,2,3],"action":[0,0]} x', 'is not JSON: unexpected "x" at byte 33'),
        ('{"state":[1,2,3],"action":[0,0]}}', 'is not JSON: unexpected "}" at byte 32'),
        ('{"state":[1,2,3],"action":[0,0]} "x', 'is not JSON: unexpected """ at byte 33'),
        ('{"state":[1,2,3],"action":[0,0]}"x"', 'is not JSON: unexpected """ at byte 32'),
        ('{"state":[1,2,3],"action":[0,0]', "is not JSON: ends too early, after 31 bytes"),
        (
            '{"state":[1,2,3],"action":[0,0],"\\ud800":1}',
            "is not JSON: the string at byte 32 is not valid UTF-8 text",
        ),
        ('{"state":[1,2,3],"action":[0,0]}\x0b', 'is not JSON: unexpected "\\x0b" at byte 32'),
        ('{"state":[1,2,3],"action":[0,0]}X', 'is not JSON: unexpected "X" at byte 32'),
        ("\u200b{}", 'is not JSON: unexpected "\\u200b" at byte 0'),
    ],
)
def test_what_is_no_object_in_json_is_named_with_its_place(body: str, problem: str) -> None:
    results = [sliced(parser, "predict", body.encode())[0] for parser in CUTTING.values()]
    results.append(at_once(CUTTING[2**15], "predict", body.encode()))

    for error in results:
        assert isinstance(error, InvalidRequestError)
        assert error.details == [{"field": "body", "problem": problem}]
