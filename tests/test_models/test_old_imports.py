from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

OLD = {
    "models.ensemble": ("models.network.ensemble", "WorldModelEnsemble"),
    "models.training.dataset": ("training.dataset.windows", "Windows"),
    "models.training.options": ("training.fitting.options", "TrainOptions"),
    "models.training.train": ("training.fitting.train", "fit"),
    "models.world_model": ("models.network.world_model", "WorldModel"),
    "service.client": ("world_model_client", "Client"),
}


@pytest.mark.parametrize("old", OLD)
def test_an_old_import_still_gives_the_same(old: str) -> None:
    new, name = OLD[old]

    assert getattr(import_module(old), name) is getattr(import_module(new), name)


def test_every_old_import_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()

    assert all(f"| `{old}` | `{new}` |" in page for old, (new, _) in OLD.items())
