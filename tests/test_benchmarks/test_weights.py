from __future__ import annotations

import numpy as np
import orjson
import pytest

from benchmarks.rivals import model as rivals
from benchmarks.serving.agreement import difference
from benchmarks.serving.candidates import Files
from benchmarks.serving.dialects import OURS, PLAIN_JSON, TENSORS, Dialect
from benchmarks.serving.run import Subject, make_subject
from benchmarks.serving.weights import make_checkpoint, write_weights
from benchmarks.serving.workloads import COMPARED, make_questions, read_episodes


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    episodes = read_episodes()
    folder = tmp_path_factory.mktemp("weights")
    ours, plain = write_weights(make_checkpoint(episodes), folder)
    return make_subject(Files(ours, plain, {}), make_questions(episodes)[:3])


@pytest.fixture
def plain_model(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> rivals.PlainModel:
    monkeypatch.setenv(rivals.WEIGHTS, str(subject.files.weights))
    return rivals.load_model()


def test_rivals_serve_one_member_with_plain_heads(plain_model: rivals.PlainModel) -> None:
    assert sum(x.numel() for x in plain_model.parameters()) == 206_116


@pytest.mark.parametrize("kind", COMPARED)
def test_rivals_answer_what_our_engine_answers(
    kind: str, subject: Subject, plain_model: rivals.PlainModel
) -> None:
    bodies = [orjson.loads(PLAIN_JSON.body(kind, q)) for q in subject.questions]

    answers = rivals.ANSWERS[kind](plain_model, bodies)

    for answer, expected in zip(answers, subject.expected[kind], strict=True):
        assert difference(kind, rivals.plain(answer), expected) is None


def test_questions_differ(subject: Subject) -> None:
    states = np.stack([q.state for q in subject.questions])

    assert len(np.unique(states, axis=0)) == len(states)


@pytest.mark.parametrize("dialect", [OURS, PLAIN_JSON, TENSORS], ids=["ours", "plain", "tensors"])
@pytest.mark.parametrize("kind", COMPARED)
def test_bodies_are_one_line(dialect: Dialect, kind: str, subject: Subject) -> None:
    assert b"\n" not in dialect.body(kind, subject.questions[0])


def test_tensors_are_read_without_dims_of_one() -> None:
    output = {"name": "reward", "shape": [1, 1], "datatype": "FP32", "data": [0.5]}

    assert TENSORS.read(orjson.dumps({"outputs": [output]}))["reward"] == 0.5


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"next_state": [1.0, 2.00001], "reward": 0.5, "done": 0.1}, None),
        ({"next_state": [1.0, 2.001], "reward": 0.5, "done": 0.1}, "differs"),
        ({"next_state": [[1.0, 2.0]], "reward": 0.5, "done": 0.1}, "shape"),
        ({"next_state": [1.0, 2.0], "reward": 0.5}, "lacks done"),
        ({"next_state": [1.0, float("nan")], "reward": 0.5, "done": 0.1}, "differs"),
    ],
    ids=["close", "far", "shape", "missing", "nan"],
)
def test_a_wrong_answer_is_named(answer: dict[str, object], problem: str | None) -> None:
    expected = {"next_state": np.array([1.0, 2.0]), "reward": 0.5, "done": 0.1}

    found = difference("predict", answer, expected)

    assert found is None if problem is None else found is not None and problem in found
