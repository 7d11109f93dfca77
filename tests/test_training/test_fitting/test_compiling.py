from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.network.unroll import unroll
from models.network.world_model import WorldModel
from tests.test_training.toy import toy_spec, toy_windows
from training.fitting.compiling import WORTH_ROWS, training_step
from training.fitting.losses import rollout_loss
from training.fitting.member import to_batch
from training.fitting.options import CURRICULUM, Stage, TrainOptions

# As an error, PyTorch's own warning ends compiling, and nothing compiled would be tested.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


def member() -> WorldModel:
    torch.manual_seed(0)
    return TrainOptions(hidden_dims=(40, 32)).architecture(toy_spec()).build(toy_spec())


def gradients(model: WorldModel, rows: int) -> dict[str, Tensor]:
    batch = to_batch(toy_windows(32, 3, seed=1), 3, torch.device("cpu"))
    model.zero_grad()
    step = training_step(model, rows)
    rollout_loss(model, batch, torch.ones(3, 4), step=step)["total"].backward()  # type: ignore[no-untyped-call]
    return {name: x.grad for name, x in model.named_parameters() if x.grad is not None}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = (x for x in caplog.records if x.name == "training.fitting.compiling")
    return [record.getMessage() for record in ours]


def test_short_runs_are_not_worth_compiling() -> None:
    model = member()
    assert training_step(model, WORTH_ROWS - 1) == model.predict
    assert training_step(model, WORTH_ROWS) != model.predict


def test_only_steps_on_a_cpu_are_compiled() -> None:
    model = member().to("meta")
    assert training_step(model, WORTH_ROWS) == model.predict


def test_the_whole_curriculum_is_compiled_and_rows_are_those_of_all_stages() -> None:
    stages = (Stage(1, 10, 5), Stage(4, 2, 3))
    assert TrainOptions(stages=stages).rows == 10 * 5 + 2 * 3 * 4
    assert TrainOptions(stages=CURRICULUM).rows > WORTH_ROWS


@pytest.mark.usefixtures("compiler")
def test_compiled_steps_teach_the_same(caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.utils.counters.clear()
    eager, compiled = (gradients(member(), rows) for rows in (0, WORTH_ROWS))
    # Whole, not by falling back: for states that are data, and for those that were predicted.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]
    assert not warnings(caplog)
    assert eager.keys() == compiled.keys()
    for name, gradient in eager.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lacks", ["a compiler", "a folder"])
def test_where_compiling_fails_training_goes_on_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, lacks: str
) -> None:
    if lacks == "a compiler":
        monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
        monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    else:
        # A file in its place: whoever is root could write a folder that is read-only.
        (tmp_path / "cache").touch()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with caplog.at_level(logging.WARNING, "training.fitting.compiling"):
        compiled = gradients(member(), WORTH_ROWS)
    said = warnings(caplog)
    assert len(said) == 1  # of three steps
    reason = {"a compiler": "no-such-compiler", "a folder": str(tmp_path / "cache")}[lacks]
    for part in ("without machine code", reason, "g++", "TORCHINDUCTOR_CACHE_DIR"):
        assert part in said[0]
    for name, gradient in gradients(member(), 0).items():
        assert torch.equal(compiled[name], gradient)


def test_an_error_of_the_model_itself_is_not_hidden(caplog: pytest.LogCaptureFixture) -> None:
    model, state, action = member(), torch.zeros(2, 5), torch.zeros(2, 1, 2)
    with pytest.raises(RuntimeError) as own:
        unroll(model.predict, state, action)
    with pytest.raises(RuntimeError) as found:
        unroll(training_step(model, WORTH_ROWS), state, action)
    assert str(found.value) == str(own.value)
    assert not warnings(caplog)
