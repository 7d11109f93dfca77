from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import models.checkpoint
from models.checkpoint import (
    Architecture,
    Calibration,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from models.ensemble import WorldModelEnsemble
from models.files import CheckpointError
from models.importing import import_weights
from models.spec import anonymous_spec
from models.world_model import WorldModel

SMALL = Architecture(hidden_dims=(16, 32))


def small_checkpoint(members: int = 2) -> Checkpoint:
    torch.manual_seed(0)
    spec = anonymous_spec(5, 2)
    return Checkpoint(
        ensemble=WorldModelEnsemble.from_members([SMALL.build(spec) for _ in range(members)]),
        spec=spec,
        architecture=SMALL,
        calibration=Calibration(0.2, 0.9, (-1.0,) * 5, (1.0,) * 5, 16, {"windows": 10}),
        training={"seed": 3},
        metrics={"auroc": 0.5},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(small_checkpoint(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_what_was_saved_is_loaded(folder: Path) -> None:
    saved, loaded = small_checkpoint(), load_checkpoint(folder)

    assert (loaded.spec, loaded.architecture, loaded.calibration) == (
        saved.spec,
        saved.architecture,
        saved.calibration,
    )
    assert (loaded.training, loaded.metrics, loaded.name) == (
        {"seed": 3},
        {"auroc": 0.5},
        saved.name,
    )
    state, actions = torch.randn(3, 5), torch.rand(3, 4, 2)
    assert torch.equal(
        loaded.ensemble.rollout(state, actions).states,
        saved.ensemble.rollout(state, actions).states,
    )
    assert not any(p.requires_grad for p in loaded.ensemble.parameters())


def test_fewer_members_may_be_loaded(folder: Path) -> None:
    first = load_checkpoint(folder, members=1)

    assert first.member_count == 1
    assert first.limits.uncertainty_limit is None
    assert load_checkpoint(folder).limits.uncertainty_limit == 0.9


@pytest.mark.parametrize("members", [0, 3])
def test_a_number_of_members_that_is_not_there_is_refused(folder: Path, members: int) -> None:
    with pytest.raises(CheckpointError, match=f"cannot serve {members} members, .* holds 2"):
        load_checkpoint(folder, members=members)


def test_the_version_follows_what_decides_the_answers(tmp_path: Path) -> None:
    checkpoint = small_checkpoint()
    version = save_checkpoint(checkpoint, tmp_path)

    assert save_checkpoint(replace(checkpoint, metrics={}, training={}), tmp_path) == version
    assert not (tmp_path / "metrics.json").exists()
    for change in (
        replace(checkpoint, calibration=replace(checkpoint.calibration, crash_threshold=0.3)),
        replace(checkpoint, spec=anonymous_spec(5, 2, dt_s=0.1)),
        replace(small_checkpoint(), ensemble=small_checkpoint(members=1).ensemble),
    ):
        assert save_checkpoint(change, tmp_path) != version


def edit_json(name: str, /, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**document, **changes}))

    return edit


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "weights.safetensors")
        change(tensors)
        save_file(tensors, folder / "weights.safetensors")

    return edit


BIAS = "models.0.decoder.bias"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "spec.json").unlink(), r"cannot read .*spec\.json"),
        (write("config.json", b"{"), r"config\.json is not JSON"),
        (write("config.json", b"[]"), r"config\.json does not hold a JSON object"),
        (edit_json("config.json", format=99), r"format 99, this version reads 1"),
        (edit_json("config.json", architecture={"depth": 3}), r"config\.json is malformed"),
        (edit_json("config.json", architecture={"hidden_dims": [16, 16]}), r"got 16"),
        (edit_json("config.json", members=3), r"lacks the tensor models\.2\."),
        (edit_json("config.json", members=1), r"holds models\.1\..* does not have"),
        (edit_json("spec.json", dt_s=-1), r"spec\.json: .*dt_s must be positive"),
        (edit_json("spec.json", state=3), r"spec\.json: .*malformed"),
        (edit_json("spec.json", **anonymous_spec(6, 2).to_json()), r"decoder.bias of shape \[5\]"),
        (edit_json("calibration.json", state_low=[0.0]), r"1 values of state_low, .* 5 state"),
        (edit_json("calibration.json", surprise=1), r"calibration\.json is malformed"),
        (write("weights.safetensors", b"not weights"), r"cannot read .*weights\.safetensors"),
        (edit_weights(lambda w: w.update({BIAS: torch.full((5,), torch.nan)})), "not finite"),
        (edit_weights(lambda w: w.pop(BIAS)), f"lacks the tensor {BIAS}"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)

    with pytest.raises(CheckpointError, match=message) as refusal:
        load_checkpoint(folder)
    assert "\n" not in str(refusal.value)


def test_a_folder_whose_writing_was_cut_short_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models.checkpoint, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(small_checkpoint(), folder)

    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        load_checkpoint(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_checkpoint(tmp_path / "nowhere")


def specification_weights(**arguments: Any) -> dict[str, torch.Tensor]:
    """A state_dict as the specification's own class writes it: no normalisers."""
    model = WorldModel(check_latent=False, residual=False, **arguments)
    return {name: x for name, x in model.state_dict().items() if "." in name}


@pytest.mark.parametrize(
    "arguments",
    [{"hidden_dims": (256, 256)}, {"hidden_dims": (64, 64), "state_dim": 6, "action_dim": 2}],
    ids=["specification", "other dims"],
)
def test_imported_weights_answer_as_the_absolute_model(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    weights = specification_weights(**arguments)
    torch.save(weights, tmp_path / "weights.pt")
    model = WorldModel(check_latent=False, residual=False, **arguments).eval()
    model.load_state_dict(weights, strict=False)

    imported = import_weights(tmp_path / "weights.pt")
    save_checkpoint(imported, tmp_path / "out")
    loaded = load_checkpoint(tmp_path / "out")

    state, action = torch.randn(4, model.state_dim), torch.rand(4, model.action_dim)
    assert torch.allclose(loaded.ensemble(state, action)[0], model(state, action)[0], atol=1e-5)
    assert loaded.limits.crash_threshold is None
    assert loaded.training["imported_from"] == "weights.pt"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"encoder.0.weight": torch.zeros(4, 4)}, "lacks the tensor dynamics.0.weight"),
        ([1, 2], "does not hold a state_dict"),
        ({**specification_weights(), "extra": torch.zeros(1)}, "holds extra"),
        (
            {**specification_weights(), "decoder.bias": torch.zeros(3)},
            r"decoder.bias of shape \[3\], the model needs \[34\]",
        ),
        (
            {**specification_weights(), "dynamics.0.weight": torch.zeros(256, 10)},
            "cannot be a WorldModel",
        ),
    ],
    ids=["incomplete", "no dict", "extra", "shape", "dims"],
)
def test_weights_that_are_no_world_model_are_refused(
    tmp_path: Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "weights.pt")

    with pytest.raises(CheckpointError, match=message):
        import_weights(tmp_path / "weights.pt")


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("pickled code ran",)


def test_pickled_code_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"encoder.0.weight": Evil()}, tmp_path / "evil.pt")

    with pytest.raises(CheckpointError, match="code is never run"):
        import_weights(tmp_path / "evil.pt")
    assert "pickled code ran" not in capsys.readouterr().out


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read weights"):
        import_weights(tmp_path / "nothing.pt")
