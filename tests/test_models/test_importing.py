"""Files as the usual tools write them, and what people give by mistake."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.checkpoint import load_checkpoint, save_checkpoint
from models.checkpoint.files import CheckpointError
from models.highway import highway_spec
from models.importing import import_weights, spec_of
from models.network.world_model import WorldModel
from tests.test_models.test_checkpoint import small_checkpoint
from tests.test_training.toy import toy_spec

Weights = dict[str, Any]


def own_class() -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(6, 2, (48, 40, 32), residual=False)


def weights_of(model: WorldModel) -> Weights:
    """A state_dict as the specification's own class writes it: no normalisers."""
    return {name: x for name, x in model.state_dict().items() if "." in name}


def prefixed(prefix: str, **others: Any) -> Weights:
    return {**{prefix + name: x for name, x in weights_of(own_class()).items()}, **others}


def lightning(**hyper_parameters: Any) -> Weights:
    return {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(prefixed("model.", **{"metric.total": torch.zeros(())})),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": []}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters,
    }


TAKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "plain": (lambda: prefixed(""), "took 22 tensors"),
    "parallel": (lambda: prefixed("module."), "took 22 tensors, prefix `module.` removed"),
    "compiled": (lambda: prefixed("_orig_mod."), "took 22 tensors, prefix `_orig_mod.` removed"),
    "compiled parallel": (
        lambda: prefixed("_orig_mod.module."),
        "took 22 tensors, prefix `_orig_mod.module.` removed",
    ),
    "parallel compiled": (
        lambda: prefixed("module._orig_mod."),
        "took 22 tensors, prefix `module._orig_mod.` removed",
    ),
    "any name": (lambda: prefixed("net."), "took 22 tensors, prefix `net.` removed"),
    "averaged": (
        lambda: prefixed("module.", n_averaged=torch.tensor(7)),
        "took 22 tensors, prefix `module.` removed; left out `n_averaged`",
    ),
    "state_dict": (
        lambda: {"state_dict": prefixed(""), "epoch": 3},
        "took 22 tensors, from the entry `state_dict`",
    ),
    "model": (
        lambda: {"model": prefixed("_forward_module."), "optimizer": {"state": {}}},
        "took 22 tensors, prefix `_forward_module.` removed, from the entry `model`",
    ),
    "nested": (
        lambda: {"checkpoint": {"model_state_dict": prefixed("")}},
        "took 22 tensors, from the entry `checkpoint` / `model_state_dict`",
    ),
    "lightning": (
        lambda: lightning(lr=0.1),
        "took 22 tensors, prefix `model.` removed, from the entry `state_dict`; left out "
        "`metric.total`",
    ),
    "twice the same": (
        lambda: {**prefixed("model."), **prefixed("compiled._orig_mod.")},
        "took 22 tensors, prefix `model.` removed; left out `compiled._orig_mod.encoder.0.weight`, "
        "`compiled._orig_mod.encoder.0.bias`, `compiled._orig_mod.encoder.2.weight` and 19 more",
    ),
    "out of order": (
        lambda: dict(sorted(prefixed("").items(), reverse=True)),
        "took 22 tensors",
    ),
    "parameters": (
        lambda: {name: nn.Parameter(x) for name, x in prefixed("").items()},
        "took 22 tensors",
    ),
    "float64": (lambda: {n: x.double() for n, x in prefixed("").items()}, "took 22 tensors"),
}


def answers(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    state, action = torch.randn(5, 6, generator=generator), torch.rand(5, 2, generator=generator)
    with torch.no_grad():
        return torch.cat([x.reshape(5, -1) for x in model(state, action)[:3]], dim=1)


@pytest.mark.parametrize("case", TAKEN)
def test_what_the_usual_tools_write_is_taken_and_said(tmp_path: Path, case: str) -> None:
    make, said = TAKEN[case]
    torch.save(make(), tmp_path / "weights.pt")

    imported = import_weights(tmp_path / "weights.pt")

    assert imported.training == {"imported_from": ["weights.pt"], "taken": [said]}
    assert imported.architecture.hidden_dims == (48, 40, 32)
    assert torch.allclose(answers(imported.ensemble), answers(own_class()), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_becomes_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    halved = {name: x.to(dtype) for name, x in prefixed("").items()}
    torch.save(halved, tmp_path / "weights.pt")

    member = import_weights(tmp_path / "weights.pt").ensemble.models[0]

    for name, x in halved.items():
        taken = member.state_dict()[name]
        assert taken.dtype == torch.float32
        assert torch.equal(taken, x.float())


def test_safetensors_are_taken_whatever_their_name(tmp_path: Path) -> None:
    save_file(prefixed("module."), tmp_path / "weights.bin")

    imported = import_weights(tmp_path / "weights.bin")

    assert imported.training["taken"] == ["took 22 tensors, prefix `module.` removed"]
    assert torch.allclose(answers(imported.ensemble), answers(own_class()), atol=1e-5)


def test_the_old_format_of_torch_is_taken(tmp_path: Path) -> None:
    torch.save(prefixed(""), tmp_path / "w.pt", _use_new_zipfile_serialization=False)

    assert import_weights(tmp_path / "w.pt").training["taken"] == ["took 22 tensors"]


def changed(name: str, value: Any) -> Weights:
    return {**prefixed(""), name: value}


def other_weights() -> Weights:
    return {name: x + 1 for name, x in prefixed("").items()}


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "tensor": (lambda: torch.zeros(3, 4), r"one tensor of shape \[3, 4\].*torch\.save\(model\.st"),
    "list": (lambda: [torch.zeros(3)], r"an object of type list: write it by"),
    "nothing": (dict, r"lacks the tensor encoder\.0\.weight.*it holds nothing"),
    "other model": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)).state_dict(),
        r"lacks the tensor encoder\.0\.weight.*it holds `0\.weight`, `0\.bias`, `1\.weight` and 1",
    ),
    "half a model": (
        lambda: {"net": {n: x for n, x in prefixed("a.").items() if "decoder" not in n}},
        r"lacks the tensor decoder\.weight \(prefix `a\.`, entry `net`\)",
    ),
    "two models": (
        lambda: {"model": prefixed("module."), "ema": other_weights()},
        r"several models \(prefix `module\.`, entry `model`; entry `ema`\): save the state_dict",
    ),
    "target network": (
        lambda: {**prefixed("model."), **{f"target.{n}": x for n, x in other_weights().items()}},
        r"several models \(prefix `model\.`; prefix `target\.`\)",
    ),
    "number among tensors": (lambda: changed("epoch", 3), r"holds epoch as an object of type int"),
    "numbers as a list": (
        lambda: changed("decoder.bias", [0.0] * 6),
        r"holds decoder\.bias as an object of type list, not as a tensor",
    ),
    "extra buffer": (
        lambda: changed("encoder.1.num_batches_tracked", torch.tensor(5.0)),
        r"holds encoder\.1\.num_batches_tracked, which the model does not have",
    ),
    "integers": (
        lambda: changed("decoder.bias", torch.zeros(6, dtype=torch.int64)),
        r"holds decoder\.bias as int64, strided; a WorldModel's tensors are dense floating",
    ),
    "complex": (lambda: changed("decoder.bias", torch.zeros(6) * 1j), "decoder.bias as complex64"),
    "sparse": (
        lambda: changed("decoder.bias", torch.zeros(6).to_sparse()),
        "decoder.bias as float32, sparse_coo",
    ),
    "no values": (
        lambda: changed("decoder.bias", torch.zeros(6, device="meta")),
        r"holds decoder\.bias without values",
    ),
    "nested": (
        lambda: changed("decoder.bias", torch.nested.nested_tensor([torch.zeros(2)] * 3)),
        r"holds decoder\.bias as a nested tensor",
    ),
    "jagged": (
        lambda: changed(
            "decoder.bias", torch.nested.nested_tensor([torch.zeros(2)] * 3, layout=torch.jagged)
        ),
        r"holds decoder\.bias as an object of type NestedTensor, not as a tensor",
    ),
    "two numbers a byte": (
        lambda: changed(
            "decoder.bias", torch.zeros(6, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
        ),
        r"as float4_e2m1fn_x2, strided, which cannot be read as 32-bit floats",
    ),
    "NaN": (
        lambda: changed("decoder.bias", torch.full((6,), math.nan)),
        r"values in decoder\.bias that are not finite",
    ),
    "beyond float32": (
        lambda: changed("decoder.bias", torch.full((6,), 1e300, dtype=torch.float64)),
        r"values in decoder\.bias that are not finite as 32-bit",
    ),
    "vector": (
        lambda: changed("encoder.0.weight", torch.zeros(6)),
        r"encoder\.0\.weight of shape \[6\], not of a linear layer",
    ),
    "empty": (
        lambda: changed("encoder.0.weight", torch.zeros(0, 1 << 40)),
        r"encoder\.0\.weight of shape \[0, 1099511627776\]: no number",
    ),
    "more numbers than bytes": (
        lambda: changed("encoder.0.weight", torch.zeros(1).expand(1 << 20, 1 << 20)),
        r"claims 109\d+ numbers in \d+ bytes",
    ),
    "no chain": (
        lambda: changed("encoder.2.weight", torch.zeros(40, 47)),
        r"encoder\.2\.weight takes 47 numbers, the layer before gives 48",
    ),
    "dropout between": (
        lambda: {n.replace("encoder.4", "encoder.6"): x for n, x in prefixed("").items()},
        r"holds layers 0, 2, 6 of encoder; the class has layers at 0, 2, 4",
    ),
    "other dynamics": (
        lambda: {
            **changed("dynamics.0.weight", torch.zeros(50, 34)),
            "dynamics.2.weight": torch.zeros(40, 50),
        },
        r"its dynamics have layers of \[50, 40, 32\] numbers, its encoder of \[48, 40, 32\]",
    ),
    "no action": (
        lambda: changed("dynamics.0.weight", torch.zeros(48, 32)),
        r"dynamics\.0\.weight takes 32 numbers, which leaves none for the action",
    ),
    "missing bias": (
        lambda: {name: x for name, x in prefixed("").items() if name != "encoder.2.bias"},
        r"lacks the tensor encoder\.2\.bias",
    ),
    "wrong head": (
        lambda: changed("done_head.0.weight", torch.zeros(7, 32)),
        r"done_head\.0\.weight of shape \[7, 32\], the model needs \[64, 32\]",
    ),
    "pickled module": (
        lambda: nn.Linear(2, 2),
        r"needs code \(torch\.nn\.modules\.linear\.Linear\), and code is never run: load it",
    ),
    "numpy": (
        lambda: changed("decoder.bias", np.zeros(6)),
        r"an object that needs code \(numpy\.",
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_exactly_one_model_is_refused_in_one_sentence(
    tmp_path: Path, case: str
) -> None:
    make, message = REFUSED[case]
    torch.save(make(), tmp_path / "weights.pt")

    with pytest.raises(CheckpointError, match=message) as caught:
        import_weights(tmp_path / "weights.pt")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("pickled code ran",)


def test_a_lightning_checkpoint_that_needs_code_says_which_and_runs_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(lightning(optimizer=Evil()), tmp_path / "weights.ckpt")

    with pytest.raises(CheckpointError, match=r"an object that needs code \(.*print\)"):
        import_weights(tmp_path / "weights.ckpt")
    assert "ran" not in capsys.readouterr().out


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def zipped(compression: int, **files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def scripted() -> bytes:
    return zipped(zipfile.ZIP_STORED, model__constants=b"", **{"model/constants.pkl": b"\x80"})


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "git-lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "is a git-lfs pointer, not the weights: run git lfs pull",
    ),
    "web page": (lambda: b"<!DOCTYPE html><html>", "is a web page"),
    "gzip": (lambda: gzip.compress(saved(prefixed(""))), "is compressed by gzip: unpack it"),
    "text": (lambda: b"not weights", r"is no file of torch\.save or safetensors: write it by"),
    "pickle": (
        lambda: pickle.dumps({"encoder.0.weight": [0.0]}),
        r"damaged, or a pickle that torch\.save did not write",
    ),
    "pickled code": (lambda: pickle.dumps(Evil()), r"damaged, or a pickle|that needs code"),
    "cut short": (lambda: saved(prefixed(""))[:-100], "is cut short or damaged: copy it again"),
    "cut short in the old format": (lambda: b"\x80\x02\x8a\nl\xfc\x9cF", "cannot read weights"),
    "cut short safetensors": (
        lambda: (200).to_bytes(8, "little") + b'{"encoder.0.weight":',
        "cannot read weights from .*copy it again",
    ),
    "zip": (
        lambda: zipped(zipfile.ZIP_STORED, a__b=b"text"),
        r"is a zip file that torch\.save did not write \(it holds `a/b`\)",
    ),
    "empty zip": (lambda: zipped(zipfile.ZIP_STORED), "a zip file that .*holds nothing"),
    "program": (scripted, r"holds a program \(TorchScript\), and code is never run"),
    "compressed zip": (
        lambda: zipped(zipfile.ZIP_DEFLATED, **{"weights/data.pkl": b"\x80\x02}."}),
        r"was compressed after torch\.save wrote it",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files_of_another_kind_say_what_they_are(tmp_path: Path, case: str) -> None:
    make, message = FILES[case]
    (tmp_path / "weights.pt").write_bytes(make())

    with pytest.raises(CheckpointError, match=message) as caught:
        import_weights(tmp_path / "weights.pt")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder: give the file with the weights"):
        import_weights(tmp_path)


def test_the_weights_of_a_checkpoint_of_this_service_are_not_imported(tmp_path: Path) -> None:
    save_checkpoint(small_checkpoint(), tmp_path)

    with pytest.raises(CheckpointError, match="needs no import: serve its folder"):
        import_weights(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("dt_s", [0.0, -0.1, math.nan, math.inf])
def test_a_length_of_a_step_that_is_none_is_refused(tmp_path: Path, dt_s: float) -> None:
    torch.save(prefixed(""), tmp_path / "weights.pt")

    with pytest.raises(CheckpointError, match=rf"the length of a step is {dt_s:g} s"):
        import_weights(tmp_path / "weights.pt", dt_s=dt_s)


def test_damage_anywhere_in_a_file_ends_in_nothing_but_a_sentence(tmp_path: Path) -> None:
    path, random = tmp_path / "weights.pt", np.random.default_rng(0)
    model = WorldModel(2, 1, (2,), residual=False, check_latent=False)
    buffer = io.BytesIO()
    torch.save(weights_of(model), buffer, _use_new_zipfile_serialization=False)
    whole = [saved(weights_of(model)), buffer.getvalue()]
    for trial in range(200):
        content = bytearray(whole[trial % 2])
        for place in random.integers(0, len(content) if trial % 4 < 2 else 1200, 3):
            content[place] = random.integers(256)
        path.write_bytes(content)
        with contextlib.suppress(CheckpointError):  # what is still whole may be taken
            import_weights(path)


def own_ensemble(seeds: Sequence[int] = (0, 1, 2)) -> list[WorldModel]:
    models = []
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(WorldModel(6, 2, (48, 40, 32), residual=False))
    return models


def ensemble_weights(prefix: str = "models.", seeds: Sequence[int] = (0, 1, 2)) -> Weights:
    """A state_dict as the specification's class for ensembles writes it, by its ModuleList."""
    return {
        f"{prefix}{i}.{name}": x
        for i, model in enumerate(own_ensemble(seeds))
        for name, x in weights_of(model).items()
    }


ENSEMBLES: dict[str, tuple[Callable[[], Any], str]] = {
    "the class's own": (
        ensemble_weights,
        "took 3 members, 66 tensors, prefixes `models.0.` to `models.2.` removed",
    ),
    "parallel": (
        lambda: ensemble_weights("module.models."),
        "took 3 members, 66 tensors, prefixes `module.models.0.` to `module.models.2.` removed",
    ),
    "a list of modules": (
        lambda: ensemble_weights(""),
        "took 3 members, 66 tensors, prefixes `0.` to `2.` removed",
    ),
    "compiled members": (
        lambda: {
            f"members.{i}._orig_mod.{name}": x
            for i, model in enumerate(own_ensemble())
            for name, x in weights_of(model).items()
        },
        "took 3 members, 66 tensors, prefixes `members.0._orig_mod.` to `members.2._orig_mod.` "
        "removed",
    ),
    "in a training checkpoint": (
        lambda: {"state_dict": {**ensemble_weights("model.models."), "metric": torch.zeros(())}},
        "took 3 members, 66 tensors, prefixes `model.models.0.` to `model.models.2.` removed, from "
        "the entry `state_dict`; left out `metric`",
    ),
}


@pytest.mark.parametrize("case", ENSEMBLES)
def test_a_file_with_an_ensemble_gives_its_members_in_order(tmp_path: Path, case: str) -> None:
    make, said = ENSEMBLES[case]
    torch.save(make(), tmp_path / "weights.pt")

    imported = import_weights(tmp_path / "weights.pt")

    assert imported.training["taken"] == [said]
    for member, own in zip(imported.ensemble.members, own_ensemble(), strict=True):
        assert torch.allclose(answers(member), answers(own), atol=1e-5)


def test_members_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    seeds = range(12)
    weights = ensemble_weights(seeds=seeds)
    torch.save(dict(sorted(weights.items())), tmp_path / "weights.pt")

    imported = import_weights(tmp_path / "weights.pt")

    for member, own in zip(imported.ensemble.members, own_ensemble(seeds), strict=True):
        assert torch.allclose(answers(member), answers(own), atol=1e-5)


def test_several_files_are_members_in_the_order_given(tmp_path: Path) -> None:
    torch.save(ensemble_weights(seeds=(0, 1)), tmp_path / "two.pt")
    torch.save(weights_of(own_ensemble((2,))[0]), tmp_path / "one.pt")

    imported = import_weights(tmp_path / "one.pt", tmp_path / "two.pt")

    assert imported.training["imported_from"] == ["one.pt", "two.pt"]
    for member, own in zip(imported.ensemble.members, own_ensemble((2, 0, 1)), strict=True):
        assert torch.allclose(answers(member), answers(own), atol=1e-5)


def without(weights: Weights, start: str) -> Weights:
    return {name: x for name, x in weights.items() if not name.startswith(start)}


HALF_ENSEMBLES: dict[str, tuple[Callable[[], Any], str]] = {
    "one left out": (
        lambda: without(ensemble_weights(), "models.1."),
        r"holds 2 members of an ensemble \(prefixes `models\.0\.` to `models\.2\.`\), but no "
        r"encoder\.0\.weight with the prefix `models\.1\.`",
    ),
    "the first left out": (
        lambda: without(ensemble_weights(), "models.0."),
        r"no encoder\.0\.weight with the prefix `models\.0\.`",
    ),
    "the last begun": (
        lambda: without(ensemble_weights(), "models.2.encoder.0.weight"),
        r"no encoder\.0\.weight with the prefix `models\.2\.`",
    ),
    "one without a part": (
        lambda: without(ensemble_weights(), "models.1.decoder.weight"),
        r"lacks the tensor decoder\.weight \(prefix `models\.1\.`\)",
    ),
    "one without a bias": (
        lambda: without(ensemble_weights(), "models.1.reward_head.0.bias"),
        r"weights\.pt \(models\.1\) lacks the tensor reward_head\.0\.bias",
    ),
    "one not finite": (
        lambda: {**ensemble_weights(), "models.1.decoder.bias": torch.full((6,), math.inf)},
        r"values in models\.1\.decoder\.bias that are not finite",
    ),
    "two the same": (
        lambda: ensemble_weights(seeds=(0, 1, 0)),
        r"weights\.pt \(models\.0\) and \S*weights\.pt \(models\.2\) hold the same weights",
    ),
    "one of other layers": (
        lambda: {
            **ensemble_weights(seeds=(0, 1)),
            **{
                f"models.2.{name}": x
                for name, x in weights_of(WorldModel(6, 2, (32,), residual=False)).items()
            },
        },
        r"\(models\.0\) has layers \[48, 40, 32\], \S*weights\.pt \(models\.2\) \[32\]",
    ),
    "two ensembles": (
        lambda: {"model": ensemble_weights(), "ema": ensemble_weights(seeds=(3, 4, 5))},
        r"several models \(prefixes `models\.0\.` to `models\.2\.`, entry `model`; prefixes",
    ),
    "an ensemble and its first": (
        lambda: {"model": ensemble_weights(), "best": prefixed("")},
        r"several models \(prefixes `models\.0\.` to `models\.2\.`, entry `model`; entry `best`\)",
    ),
}


@pytest.mark.parametrize("case", HALF_ENSEMBLES)
def test_what_is_not_exactly_one_ensemble_is_refused(tmp_path: Path, case: str) -> None:
    make, message = HALF_ENSEMBLES[case]
    torch.save(make(), tmp_path / "weights.pt")

    with pytest.raises(CheckpointError, match=message) as caught:
        import_weights(tmp_path / "weights.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (WorldModel(7, 2, (48, 40, 32)), r"a\.pt has state features 6, \S*b\.pt 7"),
        (WorldModel(6, 3, (48, 40, 32)), r"a\.pt has action features 2, \S*b\.pt 3"),
        (WorldModel(6, 2, (40, 48, 32)), r"a\.pt has layers \[48, 40, 32\], \S*b\.pt \[40, 48,"),
        (own_class(), r"a\.pt and \S*b\.pt hold the same weights"),
    ],
    ids=["states", "actions", "layers", "twice"],
)
def test_files_that_are_no_members_of_one_ensemble_are_refused(
    tmp_path: Path, other: WorldModel, message: str
) -> None:
    torch.save(weights_of(own_class()), tmp_path / "a.pt")
    torch.save(weights_of(other), tmp_path / "b.pt")

    with pytest.raises(CheckpointError, match=message):
        import_weights(tmp_path / "a.pt", tmp_path / "b.pt")


def test_members_that_measure_in_different_units_are_refused(tmp_path: Path) -> None:
    for name, scale in (("a.pt", 1.0), ("b.pt", 2.0)):
        torch.manual_seed(int(scale))
        model = WorldModel(6, 2, (48, 40, 32), residual=False)
        model.state_scale.fill_(scale)
        torch.save(model.state_dict(), tmp_path / name)

    with pytest.raises(CheckpointError, match=r"units of state_scale, but \S*a\.pt and \S*b\.pt"):
        import_weights(tmp_path / "a.pt", tmp_path / "b.pt")


def test_a_spec_gives_the_features_their_names_and_the_step_its_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = WorldModel(4, 2, (48, 40, 32), residual=False)
    torch.save(weights_of(model), tmp_path / "weights.pt")
    (tmp_path / "spec.json").write_text(json.dumps(toy_spec().to_json()))

    imported = import_weights(tmp_path / "weights.pt", spec=spec_of(str(tmp_path / "spec.json")))
    save_checkpoint(imported, tmp_path / "out")

    assert load_checkpoint(tmp_path / "out").spec == toy_spec()
    assert load_checkpoint(tmp_path / "out").limits.feature_names == ("x", "y", "vx", "vy")


def test_a_spec_with_a_geometry_leaves_the_specifications_class_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = WorldModel(34, 3, (48, 40, 32), residual=False)
    torch.save(weights_of(model), tmp_path / "weights.pt")

    save_checkpoint(
        import_weights(tmp_path / "weights.pt", spec=spec_of("highway")), tmp_path / "out"
    )

    loaded = load_checkpoint(tmp_path / "out")
    states, actions = torch.randn(5, 34), torch.rand(5, 3)
    assert loaded.spec == highway_spec()
    assert len(loaded.limits.slots) == 4  # the rules of verdicts know the neighbours
    with torch.no_grad():
        for one, other in zip(
            loaded.ensemble(states, actions)[:3], model(states, actions), strict=True
        ):
            assert torch.allclose(one, other, atol=1e-5)


def test_weights_that_do_not_fit_the_spec_are_refused_with_both_sides(tmp_path: Path) -> None:
    torch.save(prefixed(""), tmp_path / "weights.pt")

    with pytest.raises(
        CheckpointError,
        match=r"weights\.pt takes states of 6 numbers and actions of 2, but the spec 'toy' has 4 "
        "state and 2 action features",
    ):
        import_weights(tmp_path / "weights.pt", spec=toy_spec())


def test_a_step_that_is_not_the_specs_is_refused(tmp_path: Path) -> None:
    torch.save(prefixed(""), tmp_path / "weights.pt")

    with pytest.raises(CheckpointError, match=r"is 0\.05 s, but 0\.1 s in the spec 'toy'"):
        import_weights(tmp_path / "weights.pt", spec=toy_spec(), dt_s=0.05)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read .*spec\.json"),
        ("[]", r"spec\.json does not hold a JSON object"),
        ('{"name": "x"}', r"spec\.json lacks dt_s"),
    ],
    ids=["missing", "list", "incomplete"],
)
def test_a_file_that_is_no_spec_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "spec.json").write_text(content)

    with pytest.raises(CheckpointError, match=message):
        spec_of(str(tmp_path / "spec.json"))
