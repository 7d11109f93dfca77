"""Who may take how much of the device's memory, and who still can."""

from __future__ import annotations

import pytest

from service.settings import Settings
from service.telemetry.vram import OTHER_BUDGETS, budgets, headroom

GIB = 2**30


def usage(reserved: float, **device: float) -> dict[str, int]:
    kinds = {"budget": 4.0, "reserved": reserved, **device}
    return {kind: round(size * GIB) for kind, size in kinds.items()}


def test_the_budgets_are_those_of_the_specifications_table() -> None:
    default = Settings().vram_budget_bytes

    table = budgets({"budget": default})

    assert [size // GIB for size in table.values()] == [4, 2, 2, 4, 4]
    assert sum(table.values()) == 16 * GIB


@pytest.mark.parametrize(
    ("used", "own", "others"),
    [
        pytest.param(2, 2, [2, 2, 4, 4], id="nobody-else-there"),
        pytest.param(11, 2, [2, 2, 3, 3], id="training-took-nine"),
        pytest.param(14, 2, [0, 0, 0, 0], id="only-our-own-budget-is-left"),
        pytest.param(15, 1, [0, 0, 0, 0], id="others-took-some-of-ours"),
        pytest.param(16, 0, [0, 0, 0, 0], id="full"),
    ],
)
def test_headroom_keeps_the_world_models_budget_free(
    used: float, own: float, others: list[float]
) -> None:
    room = headroom(usage(2, device_used=used, device_total=16))

    assert room == {
        "world_model": own * GIB,
        **{name: size * GIB for name, size in zip(OTHER_BUDGETS, others, strict=True)},
    }


def test_without_the_driver_only_our_own_headroom_is_known() -> None:
    assert headroom(usage(3)) == {"world_model": GIB}
