"""The documentation names all there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models.safety import RULES
from service.app import ENDPOINTS
from service.bodies import OUTPUTS
from service.errors import SERVICE_ERRORS
from service.observer import ENGINE_FAULTS, REJECTIONS
from service.settings import PREFIX, Settings
from tests.test_service.test_metrics import Read

ROOT = Path(__file__).parents[2]


def text_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def everything() -> str:
    paths = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    return "\n".join(path.read_text() for path in paths)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    assert f"`{PREFIX}{name.upper()}`" in text_of("settings.md")


def test_no_setting_is_documented_that_is_not_there() -> None:
    named = set(re.findall(rf"{PREFIX}([A-Z_]+)", everything()))

    assert named <= {name.upper() for name in Settings.model_fields}


def test_every_metric_is_documented_with_its_labels() -> None:
    text = text_of("metrics.md")

    for family in Read({"allocated": 1}).registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        assert f"`{family.name}{suffix}`" in text, family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        for label in labels:
            assert f"`{label}`" in text, (family.name, label)
    for value in (*REJECTIONS, *ENGINE_FAULTS):
        assert f"`{value}`" in text, value


def test_no_metric_is_documented_that_is_not_there() -> None:
    read = Read({"allocated": 1})
    names = {family.name for family in read.registry.collect()}
    named = set(re.findall(r"\b(world_model_[a-z_]+)", everything()))

    suffixes = ("_total", "_bucket", "_sum", "_count", "")
    known = {f"{name}{suffix}" for name in names for suffix in suffixes}
    assert named <= known


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_endpoint_is_documented(path: str) -> None:
    assert re.search(rf"`(GET|POST) {path}`", text_of("http.md"))


@pytest.mark.parametrize("error", SERVICE_ERRORS, ids=lambda error: error.code)
def test_every_error_code_is_documented_with_its_status(error: type) -> None:
    row = rf"\| `{error.code}` \| {error.status} \|"  # type: ignore[attr-defined]
    assert re.search(row, text_of("http.md"))


def test_every_output_and_every_rule_is_documented() -> None:
    for name in (*OUTPUTS, *RULES):
        assert f"`{name}`" in text_of("http.md"), name
