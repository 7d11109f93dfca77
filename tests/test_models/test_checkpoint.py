from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import models.checkpoint.checkpoint
from models.checkpoint import (
    Architecture,
    Calibration,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from models.checkpoint.calibration import DONE_SCALES, DONE_SHIFTS
from models.checkpoint.files import CheckpointError, checked
from models.highway import highway_spec
from models.importing import import_weights
from models.network.ensemble import WorldModelEnsemble
from models.network.world_model import WorldModel
from models.safety import assess
from models.spec import Spec, anonymous_spec
from service.settings import PRETRAINED

ROOT = Path(models.__file__).parents[1]
SMALL = Architecture(hidden_dims=(16, 32))
CONFORMAL = {"alpha": 0.01, "lead_s": 0.2, "episodes": 99, "threshold": 0.5}
NOTES: dict[str, Any] = {"windows": 1000, "uncertainty_quantile": 0.999, "conformal": CONFORMAL}


def small_checkpoint(members: int = 2) -> Checkpoint:
    torch.manual_seed(0)
    spec = anonymous_spec(5, 2)
    return Checkpoint(
        ensemble=WorldModelEnsemble.from_members([SMALL.build(spec) for _ in range(members)]),
        spec=spec,
        architecture=SMALL,
        calibration=Calibration(0.2, 0.9, (-1.0,) * 5, (1.0,) * 5, 16, NOTES),
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
    assert not first.limits.has_disagreement
    assert load_checkpoint(folder).limits.has_disagreement
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
        replace(checkpoint, calibration=replace(checkpoint.calibration, safe_below=0.1)),
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


def pipe(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "weights.safetensors")
        change(tensors)
        save_file(tensors, folder / "weights.safetensors")

    return edit


def edit_inside(name: str, place: list[str | int], value: Any) -> Callable[[Path], None]:
    """Set a field somewhere inside a JSON file."""

    def edit(folder: Path) -> None:
        document = inner = json.loads((folder / name).read_text())
        for part in place[:-1]:
            inner = inner[part]
        inner[place[-1]] = value
        (folder / name).write_text(json.dumps(document))

    return edit


BIAS = "models.0.decoder.bias"
SCALE, SHIFT = "models.1.done_scale", "models.1.done_shift"
FIRST = "models.0.encoder.0.weight"
SURPRISE: dict[str, Any] = {"hidden_dims": [16, 32], "depth": 3}


def set_all(name: str, value: float) -> Callable[[Path], None]:
    return edit_weights(lambda w: w[name].fill_(value))


def set_one(name: str, index: int, value: float) -> Callable[[Path], None]:
    return edit_weights(lambda w: w[name][index].fill_(value))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "spec.json").unlink(), r"cannot read .*spec\.json"),
        (pipe("spec.json"), r"cannot read .*spec\.json: it is no plain file"),
        (pipe("weights.safetensors"), r"cannot read .*weights\.safetensors: it is no plain file"),
        (write("config.json", b"{"), r"config\.json is not JSON"),
        (write("config.json", b"[]"), r"config\.json does not hold a JSON object"),
        (write("spec.json", b"[" * 99_999), r"spec\.json is not JSON .*nested too deeply"),
        (write("spec.json", b'{"a": 1, "a": 2}'), r"spec\.json .*'a' is there 2 times"),
        (write("spec.json", b"\xff"), r"spec\.json is not JSON"),
        (edit_json("config.json", format=99), r"format 99, this version reads 1"),
        (
            edit_json("config.json", architecture=SURPRISE),
            r"architecture\.depth is unknown",
        ),
        (
            edit_json("config.json", architecture={}),
            r"lacks architecture\.hidden_dims",
        ),
        (edit_inside("config.json", ["architecture", "hidden_dims"], [16, 16]), r"weight of shape"),
        (edit_json("config.json", members=3), r"members is 3, but .*safetensors holds 2"),
        (edit_json("config.json", members=1), r"members is 1, but .*safetensors holds 2"),
        (edit_json("spec.json", dt_s=-1), r"spec\.json: dt_s is -1, but should be greater than"),
        (edit_json("spec.json", state=3), r"spec\.json: state is 3, but should be a valid array"),
        (
            edit_json("spec.json", **anonymous_spec(6, 2).to_json()),
            "the spec has 6 state features",
        ),
        (edit_json("calibration.json", state_low=[0.0]), r"state_low has 1 values, state_high 5"),
        (
            edit_json("calibration.json", state_low=[0.0], state_high=[0.0]),
            r"calibration\.json has 1 values of state_low, .* 5 state features",
        ),
        (edit_json("calibration.json", surprise=1), r"calibration\.json: surprise is unknown"),
        (write("weights.safetensors", b"not weights"), r"cannot read .*weights\.safetensors"),
        (set_all(BIAS, torch.nan), "not finite"),
        (edit_weights(lambda w: w.pop(BIAS)), f"lacks the tensor {BIAS}"),
        (edit_weights(lambda w: w.pop(FIRST)), f"lacks the tensor {FIRST}"),
        (
            edit_weights(lambda w: w.update({BIAS: w[BIAS].double()})),
            r"float64, .* torch\.float32",
        ),
        (set_all(SCALE, 0.0), r"done_scale holds 0, but must be from 0.1 to 10"),
        (set_all(SCALE, -1.0), r"done_scale holds -1, but"),
        (set_all(SCALE, 11.0), r"done_scale holds 11, but"),
        (set_all(SHIFT, -50.0), r"done_shift holds -50, but must be from -4 to 4"),
        (set_all(SHIFT, -4.1), r"done_shift holds -4.1, but"),
        (set_all(SHIFT, 4.1), r"done_shift holds 4.1, but"),
        (set_all("models.0.state_scale", 0.0), "state_scale holds 0 for state_0, but"),
        (set_all("models.0.delta_scale", -0.5), "delta_scale holds -0.5 for state_0, but"),
        (
            set_one("models.1.state_scale", 3, 1e12),
            r"scale holds 1e\+12 for state_3, but .* 2e\+08",
        ),
        (set_one("models.0.state_scale", 0, 1e-7), "state_scale holds 1e-07 for state_0, but"),
        (set_one("models.1.state_mean", 4, 1e12), r"mean holds 1e\+12 for state_4, but .* 3e\+06"),
        (set_one("models.0.state_mean", 1, -4e6), r"state_mean holds -4e\+06 for state_1, but"),
        (set_one("models.0.delta_scale", 2, 1e12), r"delta_scale holds 1e\+12 for state_2, but"),
        (set_all("models.0.reward_scale", -0.5), "reward_scale holds -0.5, but"),
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


@pytest.mark.parametrize(
    ("low", "high", "trained", "scale"),
    [
        (100.0, 100.5, (), 1.0),
        (-1e-9, 1e-9, (), 1e-9),
        (-1.0, 1.0, (), 30.0),
        (-1.0, 1.0, (-3e4, 3e4), 3e4),
        (-1e12, 1e12, (), 1e12),
    ],
    ids=["beside zero", "narrow", "another's scale", "wider data", "wide"],
)
def test_normalisers_that_values_have_are_taken(
    tmp_path: Path, low: float, high: float, trained: tuple[float, ...], scale: float
) -> None:
    whole = small_checkpoint()
    features = tuple(replace(x, low=low, high=high) for x in whole.spec.state)
    known = Calibration(state_low=trained[:1] * 5, state_high=trained[1:] * 5)
    given = replace(whole, spec=replace(whole.spec, state=features), calibration=known)
    for member in given.ensemble.members:
        member.get_buffer("state_scale").fill_(scale)
    given = replace(given, ensemble=WorldModelEnsemble.from_members([*given.ensemble.members]))
    save_checkpoint(given, tmp_path)

    assert (load_checkpoint(tmp_path).ensemble.state_dict()["models.0.state_scale"] == scale).all()


NAN, INF = float("nan"), float("inf")
NO_NUMBERS = [True, "0.018", [0.1], {}, NAN, INF, -INF, 10**400]
FIELDS: list[tuple[str, list[str | int], list[Any]]] = [
    ("calibration.json", ["crash_threshold"], [75, 0, 1, -0.1, 0.999, 0.5001]),
    ("calibration.json", ["safe_below"], [0, -0.1, 0.2001, 0.5, 0.6, 75]),
    ("calibration.json", ["uncertainty_limit"], [0, -1, 1e300]),
    ("calibration.json", ["state_low", 1], [2.0, 1e39, -1e39, None]),
    ("calibration.json", ["state_high", 4], [-2.0, 1e39, -1e39, None]),
    ("calibration.json", ["horizon"], [-1, 16.0, 0.5, 1e5, None]),
    (
        "calibration.json",
        ["notes", "conformal", "alpha"],
        [0, 1, -1, 1e-320, 1e-5, 0.6, 0.0099, None],
    ),
    ("calibration.json", ["notes", "conformal", "lead_s"], [-1, 1e6, 0.85, None]),
    ("calibration.json", ["notes", "conformal", "episodes"], [-1, 2.5, 1, 98, 1001, 10**13, None]),
    ("calibration.json", ["notes", "conformal", "threshold"], [-0.1, 1.1]),
    ("calibration.json", ["notes", "windows"], [-1, 2.5, 10**13, 399]),
    ("calibration.json", ["notes", "episodes"], [-1, 2.5, 98, 1001]),
    ("calibration.json", ["notes", "windows_that_end"], [-1, 2.5, 98, 1001]),
    ("calibration.json", ["notes", "false_alarm_rate"], [-0.1, 1.1]),
    ("calibration.json", ["notes", "false_alarm_threshold"], [-0.1, 1.1]),
    ("calibration.json", ["notes", "realised_false_alarm_rate"], [-0.1, 1.1]),
    ("calibration.json", ["notes", "uncertainty_quantile"], [-0.1, 1.1]),
    ("calibration.json", ["notes", "done_scale"], [0, -1, 0.09, 10.1]),
    ("calibration.json", ["notes", "done_shift"], [-50, -4.1, 4.1]),
    ("spec.json", ["dt_s"], [0, -1, 1e-300, 1e6, None]),
    ("spec.json", ["state", 2, "low"], [1e6, 2e6, -1e39, None]),
    ("spec.json", ["action", 1, "high"], [-1e6, -2e6, 1e39, None]),
    ("spec.json", ["geometry", "length_m"], [0, -5, 1e9, None]),
    ("spec.json", ["geometry", "width_m"], [0, -5, 1e9, None]),
    ("spec.json", ["kinematics", "grip_mps2"], [0, -8, None]),
    ("spec.json", ["kinematics", "max_steering_rad"], [0, 1.6, None]),
    ("config.json", ["format"], [2, 0, None]),
    ("config.json", ["members"], [0, -1, 2.0, 10**9, None]),
    ("config.json", ["architecture", "hidden_dims", 0], [0, -16, 16.0, 10**9, None]),
]


@pytest.fixture(scope="module")
def driving_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose spec has every part."""
    torch.manual_seed(0)
    spec, architecture = driving_spec(), replace(SMALL, kinematics=True)
    dim = spec.state_dim
    notes = NOTES | {"episodes": 400, "windows_that_end": 500}
    checkpoint = Checkpoint(
        ensemble=WorldModelEnsemble.from_members([architecture.build(spec) for _ in range(2)]),
        spec=spec,
        architecture=architecture,
        calibration=Calibration(0.2, 0.9, (-1.0,) * dim, (1.0,) * dim, 16, notes),
    )
    folder = tmp_path_factory.mktemp("driving")
    save_checkpoint(checkpoint, folder)
    return folder


def driving_spec() -> Spec:
    """The bundled model's spec with ranges as wide as those of `small_checkpoint`."""
    spec = highway_spec()
    state = tuple(replace(feature, low=-1e6, high=1e6) for feature in spec.state)
    return replace(spec, state=state, action=tuple(replace(f, low=-1e6) for f in spec.action))


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        pytest.param(name, place, value, id=f"{name} {'.'.join(map(str, place))} {value!r:.20}")
        for name, place, out_of_range in FIELDS
        for value in (*NO_NUMBERS, *out_of_range)
    ],
)
def test_a_number_that_makes_no_sense_is_refused_by_file_field_and_value(
    driving_folder: Path, tmp_path: Path, name: str, place: list[str | int], value: Any
) -> None:
    folder = shutil.copytree(driving_folder, tmp_path / "copy")
    edit_inside(name, place, value)(folder)

    with pytest.raises(CheckpointError) as refusal:
        load_checkpoint(folder)

    said = str(refusal.value)
    named = [part for part in place if isinstance(part, str)][-1]
    assert name in said
    assert named in said
    assert repr(value)[:20] in said
    assert len(said) < 400
    assert "\n" not in said


@pytest.mark.parametrize("name", ["calibration.json", "spec.json", "config.json", "training.json"])
@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused_wherever_it_is(
    folder: Path, name: str, text: str
) -> None:
    whole = (folder / name).read_text().rstrip().removesuffix("}")
    (folder / name).write_text(f'{whole}, "deep": {{"er": [0, {text}]}}}}')

    with pytest.raises(CheckpointError, match=rf"{name}.*: deep\.er\[1\] is .*must be finite"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("spec.json", ["name"], 3),
        ("spec.json", ["state", 0, "name"], ""),
        ("spec.json", ["state", 0, "name"], "x" * 1000),
        ("spec.json", ["state", 0, "unit"], None),
        ("spec.json", ["state", 0, "meaning"], ["x"]),
        ("spec.json", ["state", 0, "name"], "\ud800"),
        ("spec.json", ["state", 0, "name"], "lane_offset"),
        ("spec.json", ["geometry", "edges", 0], "altitude"),
        ("spec.json", ["geometry", "slots", 0, "dx"], "neighbour_2_dx"),
        ("spec.json", ["kinematics", "speed"], "lane_offset"),
        ("spec.json", ["kinematics", "brake"], "throttle"),
        ("spec.json", ["kinematics", "brake"], "clutch"),
        ("spec.json", ["kinematics"], None),
        ("config.json", ["name"], None),
        ("config.json", ["name"], True),
        ("config.json", ["architecture", "activation"], "sigmoid"),
        ("config.json", ["architecture", "activation"], 1),
        ("config.json", ["architecture", "kinematics"], 1),
        ("config.json", ["architecture", "residual"], "yes"),
        ("config.json", ["architecture", "hidden_dims"], []),
        ("config.json", ["architecture", "hidden_dims"], [16] * 99),
        ("calibration.json", ["notes"], None),
        ("calibration.json", ["notes", "conformal"], [1]),
        ("calibration.json", ["notes", "allow_unguaranteed"], 1),
        ("calibration.json", ["notes", "allow_unguaranteed"], "yes"),
        ("calibration.json", ["state_low"], []),
        ("calibration.json", ["state_low", 0], 1.5),
    ],
    ids=str,
)
def test_a_field_of_another_kind_is_refused(
    driving_folder: Path, tmp_path: Path, name: str, place: list[str | int], value: Any
) -> None:
    folder = shutil.copytree(driving_folder, tmp_path / "copy")
    edit_inside(name, place, value)(folder)

    with pytest.raises(CheckpointError, match=name) as refusal:
        load_checkpoint(folder)
    assert "\n" not in str(refusal.value)


UNKNOWN_TO_0_1 = {"frame", "conventions", "example"}
"""Fields of a spec that version 0.1 did not write."""
MAY_BE_MISSING = UNKNOWN_TO_0_1 | {"geometry", "kinematics", "safe_below", "error_limit_m"}


def test_a_checkpoint_of_version_0_1_can_be_served(driving_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(driving_folder, tmp_path / "old")
    document = json.loads((folder / "spec.json").read_text())
    for field in UNKNOWN_TO_0_1:
        del document[field]
    (folder / "spec.json").write_text(json.dumps(document))

    spec = load_checkpoint(folder).spec

    assert (spec.frame, spec.conventions, spec.example) == (None, (), None)
    assert spec.state == load_checkpoint(driving_folder).spec.state


def test_a_calibration_without_a_lower_bound_is_as_before(
    driving_folder: Path, tmp_path: Path
) -> None:
    """Version 0.2 did not write `safe_below`."""
    folder = shutil.copytree(driving_folder, tmp_path / "old")
    document = json.loads((folder / "calibration.json").read_text())
    del document["safe_below"]
    (folder / "calibration.json").write_text(json.dumps(document))

    old = load_checkpoint(folder)

    assert old.calibration == load_checkpoint(driving_folder).calibration
    assert (old.calibration.safe_below, old.limits.safe_below) == (None, None)


@pytest.mark.parametrize("name", ["calibration.json", "spec.json", "config.json"])
def test_a_missing_field_is_refused(driving_folder: Path, tmp_path: Path, name: str) -> None:
    for place in ([], ["architecture"], ["geometry"], ["kinematics"], ["state", 0]):
        document = json.loads((driving_folder / name).read_text())
        inner = document
        try:
            for part in place:
                inner = inner[part]
        except KeyError:
            continue
        for field in inner.keys() - MAY_BE_MISSING:
            folder = shutil.copytree(driving_folder, tmp_path / "copy", dirs_exist_ok=True)
            kept = inner.pop(field)
            (folder / name).write_text(json.dumps(document))
            with pytest.raises(CheckpointError, match=rf"{name}.* {field}|{name}.*\.{field}"):
                load_checkpoint(folder)
            inner[field] = kept


def test_a_model_of_another_size_than_its_weights_is_refused_before_it_is_built(
    folder: Path,
) -> None:
    """Built first, it would take 17 GB."""
    edit_inside("config.json", ["architecture", "hidden_dims"], [65_536, 65_536])(folder)

    with pytest.raises(CheckpointError, match=r"shape \[16, 5\], the model needs \[65536, 5\]"):
        load_checkpoint(folder)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    checkpoint = small_checkpoint()
    wrong = replace(checkpoint.calibration, crash_threshold=75.0)

    with pytest.raises(
        CheckpointError, match=r"is 75\.0, but should be less than or equal to 0\.5"
    ):
        save_checkpoint(replace(checkpoint, calibration=wrong), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_calibration_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    checkpoint = small_checkpoint()
    for member in checkpoint.ensemble.members:
        member.set_calibration(done_scale=1.0, done_shift=-50.0)

    with pytest.raises(CheckpointError, match=r"done_shift holds -50, but must be from -4 to 4"):
        save_checkpoint(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_threshold_without_known_ranges_is_refused() -> None:
    with pytest.raises(ValueError, match=r"crash_threshold is 0\.5, but must be null where"):
        Calibration(crash_threshold=0.5)


def test_a_lower_bound_is_not_above_the_threshold() -> None:
    calibration = small_checkpoint().calibration

    assert replace(calibration, safe_below=calibration.crash_threshold).safe_below == 0.2
    for change in ({"safe_below": 0.3}, {"safe_below": NAN}, {"crash_threshold": None}):
        with pytest.raises(ValueError, match="must not be above crash_threshold"):
            replace(calibration, **{"safe_below": 0.1, **change})  # type: ignore[arg-type]


LOOSE = NOTES | {"conformal": {**CONFORMAL, "threshold": None}}


@pytest.mark.parametrize(
    ("notes", "served"),
    [
        (NOTES, 0.2),
        (NOTES | {"conformal": {**CONFORMAL, "threshold": 0.2}}, 0.2),
        (NOTES | {"conformal": {**CONFORMAL, "threshold": 0.19}}, None),
        (NOTES | {"conformal": {**CONFORMAL, "threshold": 0}}, None),
        (LOOSE, None),
        (LOOSE | {"allow_unguaranteed": False}, None),
        (LOOSE | {"allow_unguaranteed": True}, 0.2),
        ({}, None),
        ({"conformal": None}, None),
        ({"allow_unguaranteed": True}, 0.2),
    ],
    ids=[
        "guaranteed",
        "just guaranteed",
        "above the guarantee",
        "guaranteed at 0",
        "by an earlier version",
        "not asked for",
        "asked for",
        "set by hand",
        "no guarantee",
        "set by hand and asked for",
    ],
)
def test_a_threshold_that_guarantees_nothing_is_served_only_if_asked_for(
    notes: dict[str, Any], served: float | None
) -> None:
    checkpoint = small_checkpoint()
    calibration = replace(checkpoint.calibration, notes=notes, safe_below=0.1)
    limits = replace(checkpoint, calibration=calibration).limits

    assert limits.crash_threshold == served
    # A request may bring a threshold of its own: the bound holds for that, too.
    assert limits.safe_below == 0.1
    assert calibration.refused.get("crash_threshold") == (0.2 if served is None else None)


@pytest.mark.parametrize(
    ("notes", "served"),
    [
        (NOTES, 0.9),
        (NOTES | {"windows": 999}, None),
        (NOTES | {"uncertainty_quantile": 1}, None),
        ({"windows": 1000}, None),
        ({"uncertainty_quantile": 0.5}, None),
        ({}, None),
        ({"allow_unguaranteed": True}, 0.9),
    ],
    ids=str,
)
def test_an_uncertainty_limit_of_few_windows_is_served_only_if_asked_for(
    notes: dict[str, Any], served: float | None
) -> None:
    checkpoint = small_checkpoint()
    calibration = replace(checkpoint.calibration, notes=notes)

    assert replace(checkpoint, calibration=calibration).limits.uncertainty_limit == served
    assert calibration.refused.get("uncertainty_limit") == (0.9 if served is None else None)


@given(
    st.floats(0, 1) | st.none(),
    st.floats(0, 1, exclude_min=True),
    st.integers(0, 2000),
    st.floats(0, 1) | st.none(),
    st.integers(0, 2000) | st.none(),
)
def test_no_calibration_is_served_without_episodes_that_vouch_for_it(
    crash_threshold: float | None,
    alpha: float,
    episodes: int,
    guaranteed: float | None,
    windows: int | None,
) -> None:
    conformal = {"alpha": alpha, "lead_s": 0.2, "episodes": episodes, "threshold": guaranteed}
    bounds = (-1.0,) * 5, (1.0,) * 5
    document = {
        "crash_threshold": crash_threshold,
        "uncertainty_limit": 0.9,
        "state_low": bounds[0],
        "state_high": bounds[1],
        "horizon": 16,
        "notes": {"conformal": conformal, "windows": windows, "uncertainty_quantile": 0.999},
    }
    try:
        calibration = checked(Calibration, document, "calibration.json")
    except CheckpointError:
        return
    served = calibration.served_threshold
    if served is not None:
        assert guaranteed is not None
        assert 0 < served <= min(0.5, guaranteed)
        assert 0.0001 <= alpha <= 0.5
        assert alpha * (episodes + 1) >= 1
        assert windows is None or windows >= episodes
    assert calibration.served_uncertainty_limit is None or (windows or 0) >= 1000


def test_the_bundled_checkpoint_is_what_it_was() -> None:
    bundled = load_checkpoint(Path(models.__file__).parent / "pretrained")

    assert bundled.version == "38e167791b85ff8c"
    guarantee = bundled.calibration.guarantee
    assert guarantee is not None
    assert (guarantee.alpha, guarantee.episodes, guarantee.episodes_needed) == (0.01, 402, 99)
    assert guarantee.holds_for(bundled.limits.crash_threshold)


@pytest.mark.parametrize("shift", DONE_SHIFTS)
@pytest.mark.parametrize("scale", [DONE_SCALES[0], 0.5, 1.0, DONE_SCALES[1]])
def test_no_calibration_that_is_loaded_makes_a_sure_crash_look_safe(
    bundled_crash: tuple[Checkpoint, torch.Tensor, torch.Tensor], scale: float, shift: float
) -> None:
    checkpoint, state, actions = bundled_crash
    for member in checkpoint.ensemble.members:
        member.set_calibration(done_scale=scale, done_shift=shift)

    rollout = checkpoint.ensemble.rollout(state, actions)

    states, dones = rollout.states.numpy(), rollout.dones.numpy()
    (verdict,) = assess(
        states,
        dones,
        rollout.uncertainty.numpy(),
        checkpoint.limits,
        actions=actions.numpy(),
    )
    assert verdict.verdict == "unsafe"


@pytest.fixture(scope="module")
def bundled_crash() -> tuple[Checkpoint, torch.Tensor, torch.Tensor]:
    """The bundled model, and a crash that is sure: 25 m/s, 7 m behind a car that stands."""
    checkpoint = load_checkpoint(ROOT / "models" / "pretrained")
    car = {"length": 4.8, "width": 1.9}
    ahead = {f"neighbour_1_{name}": x for name, x in {**car, "dx": 11.8}.items()}
    known = {"speed": 25.0, "left_edge": 6.0, "right_edge": 6.0, **car, **ahead}
    state = [[known.get(feature.name, 0.0) for feature in checkpoint.spec.state]]
    return checkpoint, torch.tensor(state), torch.zeros(1, 16, 3)


def test_a_checkpoint_stays_whole_if_its_successor_cannot_be_written(folder: Path) -> None:
    before = load_checkpoint(folder).version
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(small_checkpoint(members=3), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert load_checkpoint(folder).version == before
    assert not list(folder.glob("*.partial"))


def test_a_folder_whose_replacing_was_cut_short_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(small_checkpoint(), folder)

    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize("read_last", ["read_spec", "_checked_calibration", "load_tensors"])
def test_a_checkpoint_that_is_replaced_while_it_is_read_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, read_last: str
) -> None:
    module = models.checkpoint.checkpoint
    reads = getattr(module, read_last)
    other = small_checkpoint()
    other = replace(other, calibration=replace(other.calibration, crash_threshold=0.4))

    def read_and_write(*args: Any, **options: Any) -> Any:
        found = reads(*args, **options)
        with monkeypatch.context() as patched:
            patched.setattr(module, read_last, reads)
            save_checkpoint(other, folder)
        return found

    monkeypatch.setattr(module, read_last, read_and_write)
    with pytest.raises(CheckpointError, match="was written to while it was read: try again"):
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
    assert loaded.training["imported_from"] == ["weights.pt"]


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


def test_a_checkpoint_from_before_geometry_was_a_choice_keeps_its_version(folder: Path) -> None:
    loaded = load_checkpoint(folder)

    assert "geometry" not in json.loads((folder / "config.json").read_text())["architecture"]
    assert loaded.architecture.geometry
    assert save_checkpoint(loaded, folder) == loaded.version


def test_members_that_read_no_geometry_are_built_again_without_it(tmp_path: Path) -> None:
    spec, architecture = driving_spec(), replace(SMALL, geometry=False)
    member = architecture.build(spec)
    save_checkpoint(
        Checkpoint(WorldModelEnsemble.from_members([member]), spec, architecture), tmp_path
    )

    loaded = load_checkpoint(tmp_path)

    assert loaded.architecture == architecture
    states, actions = torch.randn(3, spec.state_dim), torch.rand(3, spec.action_dim)
    with torch.no_grad():
        assert torch.allclose(loaded.ensemble(states, actions)[2], member(states, actions)[2])


def test_kinematics_without_a_geometry_are_refused() -> None:
    with pytest.raises(ValueError, match="kinematics is true, but must be false where geometry is"):
        Architecture(kinematics=True, geometry=False)


def test_some_members_are_another_version_without_limits(tmp_path: Path) -> None:
    """Thresholds hold for the members that were calibrated together."""
    bundled = load_checkpoint(PRETRAINED)

    some = load_checkpoint(PRETRAINED, members=3)
    some = replace(some, calibration=replace(some.calibration, safe_below=1e-3))
    all_named = load_checkpoint(PRETRAINED, members=5)

    assert some.version == f"{bundled.version}-3of5"
    assert (some.limits.crash_threshold, some.limits.uncertainty_limit) == (None, None)
    assert (some.limits.safe_below, some.limits.error_limit_m) == (None, None)
    assert some.guarantee is None
    assert set(some.refused) == {"crash_threshold", "uncertainty_limit", "error_limit_m"}
    assert (all_named.version, all_named.limits.crash_threshold) == (
        bundled.version,
        bundled.limits.crash_threshold,
    )
    with pytest.raises(CheckpointError, match="3 of 5 members cannot be saved with the calibrat"):
        save_checkpoint(some, tmp_path / "some")
    assert not (tmp_path / "some").exists()


def test_no_verdict_of_some_members_is_known() -> None:
    some = load_checkpoint(PRETRAINED, members=3)
    assert some.spec.example is not None
    states = torch.tensor([some.spec.example.state] * 2)
    actions = torch.zeros(2, 16, 3)
    actions[1, :, 2] = 1.0

    made = some.ensemble.rollout(states, actions)
    states_, dones, spread = made.states.numpy(), made.dones.numpy(), made.uncertainty.numpy()
    judge = partial(assess, states_, dones, spread, some.limits, actions=actions.numpy())
    verdicts = judge() + judge(threshold=0.5)

    assert [v.verdict for v in verdicts] == ["unknown"] * 4
    assert verdicts[0].reasons[0].rule == "not_calibrated"
    assert verdicts[0].reasons[0].message.startswith("3 of 5 members answer, and the checkpoint's")
