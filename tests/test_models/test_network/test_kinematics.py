from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.highway import highway_spec
from models.network.kinematics import KinematicStep
from models.network.world_model import WorldModel
from models.road_users import road_users_spec
from models.spec import Feature, Spec
from training.simulation.behaviours import SEQUENCE_KINDS, draw_sequence
from training.simulation.simulator import Simulation

SPEC = replace(highway_spec(), example=None)


def state_of(**values: float) -> Tensor:
    state = torch.zeros(1, 34)
    for name, value in values.items():
        state[0, SPEC.state_index(name)] = value
    return state


def value_of(state: Tensor, name: str) -> float:
    return float(state[0, SPEC.state_index(name)])


def roll(state: Tensor, steps: int, action: tuple[float, float, float] = (0, 0, 0)) -> Tensor:
    step = KinematicStep(SPEC)
    for _ in range(steps):
        state = step(state, torch.tensor([action]))
    return state


@pytest.mark.parametrize("kind", SEQUENCE_KINDS)
def test_the_ego_moves_as_in_the_simulator(kind: str) -> None:
    """Speed, edges and heading of the straight road, and everyone's place seen from the ego."""
    world = Simulation(11, "highway")
    world.step(np.zeros(3))
    step, rng = KinematicStep(SPEC), np.random.default_rng(1)
    for action in draw_sequence(kind, rng, 12):
        before = torch.tensor(world.state())[None]
        world.step(action)
        if world.cause:
            break
        after = world.state()
        predicted = step(before, torch.tensor(action)[None])[0].numpy()
        np.testing.assert_allclose(predicted[[0, 2, 3, 4]], after[[0, 2, 3, 4]], atol=1e-4)
    else:
        assert not world.cause


def test_a_neighbour_keeps_its_acceleration_until_it_stands() -> None:
    start = state_of(
        speed=10.0,
        neighbour_1_presence=1.0,
        neighbour_1_dx=30.0,
        neighbour_1_speed=2.0,
        neighbour_1_acceleration=-8.0,
    )

    soon, late = roll(start, 2), roll(start, 16)

    assert value_of(soon, "neighbour_1_speed") == pytest.approx(2.0 - 2 * 0.05 * 8.0)
    assert value_of(late, "neighbour_1_speed") == 0
    assert value_of(late, "neighbour_1_acceleration") == 0
    # Euler steps of 2.0, 1.6, 1.2, 0.8, 0.4 m/s, while the ego drives 8 m.
    assert value_of(late, "neighbour_1_dx") == pytest.approx(30.0 + 6.0 * 0.05 - 8.0, abs=1e-4)


def test_a_turning_neighbour_drives_a_circle() -> None:
    """Seen from a standing ego, at 10 m/s and 0.5 rad/s: a radius of 20 m for the rear's axle."""
    start = state_of(
        neighbour_3_presence=1.0,
        neighbour_3_dx=5.0,
        neighbour_3_speed=10.0,
        neighbour_3_yaw_rate=0.5,
    )

    end = roll(start, 16)

    assert value_of(end, "neighbour_3_heading") == pytest.approx(0.4, abs=1e-5)
    chord = np.hypot(value_of(end, "neighbour_3_dx") - 5.0, value_of(end, "neighbour_3_dy"))
    assert chord == pytest.approx(2 * 20.0 * np.sin(0.2), rel=1e-2)


def test_a_turning_ego_sees_a_standing_neighbour_turn_the_other_way() -> None:
    start = state_of(
        speed=10.0, neighbour_2_presence=1.0, neighbour_2_dx=20.0, left_edge=5.0, right_edge=5.0
    )

    end = roll(start, 8, (1.0, 0.0, 0.0))

    assert value_of(end, "neighbour_2_heading") < -0.1
    assert value_of(end, "neighbour_2_dy") < 0
    assert value_of(end, "right_edge") < 5.0 < value_of(end, "left_edge")


def test_absent_neighbours_and_presences_stay_as_they_are() -> None:
    states = torch.randn(8, 34)
    for slot in range(4):
        states[:, 6 + 7 * slot] = float(slot % 2)
        if slot % 2 == 0:
            states[:, 6 + 7 * slot : 13 + 7 * slot] = 0.0

    after = KinematicStep(SPEC)(states, torch.rand(8, 3))

    assert torch.equal(after[:, 6::7], states[:, 6::7])
    assert (after[:, 6:13] == 0).all()
    assert (after[:, 20:27] == 0).all()


SIZED = road_users_spec()


def sized_state(**values: float) -> Tensor:
    state = torch.zeros(1, SIZED.state_dim)
    for name, value in {"length": 5.0, "width": 2.0, **values}.items():
        state[0, SIZED.state_index(name)] = value
    return state


def sized_steps(state: Tensor, steps: int, steer: float = 0.0) -> dict[str, float]:
    step = KinematicStep(SIZED)
    for _ in range(steps):
        state = step(state, torch.tensor([[steer, 0.0, 0.0]]))
    return {x.name: value for x, value in zip(SIZED.state, state[0].tolist(), strict=True)}


def test_a_long_ego_turns_less_than_a_short_one() -> None:
    """At low speed the wheels turn as far, and the turn rate goes as 1 over the wheelbase."""
    turned = [
        sized_steps(sized_state(speed=1.0, length=length_m), 4, 1.0)["sin_heading_error"]
        for length_m in (5.0, 10.0)
    ]

    assert turned[0] == pytest.approx(2 * turned[1], rel=1e-3)
    assert turned[1] > 0.01


def test_a_slot_without_acceleration_keeps_its_speed_and_one_with_does_not() -> None:
    there = {
        f"neighbour_{i}_{part}": value
        for i in (1, 3)
        for part, value in (("length", 4.0), ("width", 2.0), ("dx", 10.0 * i), ("speed", 8.0))
    }
    after = sized_steps(sized_state(**there, neighbour_1_acceleration=-2.0), 10)

    assert after["neighbour_1_speed"] == pytest.approx(7.0)
    assert after["neighbour_1_acceleration"] == -2.0
    assert after["neighbour_3_speed"] == 8.0
    assert after["neighbour_3_dx"] == pytest.approx(34.0, abs=1e-4)
    assert after["neighbour_3_heading"] == 0.0
    assert (after["neighbour_3_length"], after["neighbour_3_width"]) == (4.0, 2.0)


def test_who_has_no_length_stays_as_it_is() -> None:
    states = torch.randn(8, 34).abs()
    columns = [i for i, x in enumerate(SIZED.state) if x.name.startswith("neighbour_2")]
    states[:, SIZED.state_index("neighbour_2_length")] = 0.0
    states[4:, SIZED.state_index("neighbour_2_length")] = -1.0

    after = KinematicStep(SIZED)(states, torch.rand(8, 3))

    assert torch.equal(after[:, columns], states[:, columns])
    assert not torch.equal(after, states)


def test_a_turning_neighbours_centre_slips_by_its_own_length() -> None:
    spec = road_users_spec(["neighbour_1_yaw_rate", "neighbour_2_acceleration"])
    aside = []
    for length_m in (4.0, 12.0):
        state = torch.zeros(1, 34)
        for name, value in {"length": length_m, "speed": 10.0, "yaw_rate": 0.5}.items():
            state[0, spec.state_index(f"neighbour_1_{name}")] = value
        after = KinematicStep(spec)(state, torch.zeros(1, 3))
        aside.append(after[0, spec.state_index("neighbour_1_dy")].item())

    # slip = yaw rate x length / 2 / speed; in a step of 0.5 m.
    assert aside == pytest.approx([0.5 * 0.5 * length / 2 / 10 for length in (4.0, 12.0)], rel=1e-4)


@pytest.mark.parametrize("spec", [SPEC, SIZED], ids=lambda spec: spec.name)
def test_gradients_reach_the_actions_and_stay_finite(spec: Spec) -> None:
    states, actions = torch.randn(8, 34, requires_grad=True), torch.rand(8, 3, requires_grad=True)

    KinematicStep(spec)(states, actions).square().sum().backward()

    assert states.grad is not None
    assert actions.grad is not None
    assert torch.isfinite(states.grad).all()
    assert actions.grad.abs().sum() > 0


def test_an_untrained_decoder_of_zeros_leaves_the_analytic_step() -> None:
    model = WorldModel(spec=SPEC, kinematics=True)
    torch.nn.init.zeros_(model.decoder.weight)
    states, actions = torch.rand(8, 34), torch.rand(8, 3)

    assert torch.equal(model(states, actions)[0], KinematicStep(SPEC)(states, actions))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(SPEC, kinematics=None), "names no kinematics"),
        (
            replace(SPEC, state=(*SPEC.state, Feature("wind", "m/s", 0, 9, "wind"))),
            "no kinematics covers",
        ),
    ],
    ids=["none", "uncovered"],
)
def test_a_spec_that_does_not_fit_is_refused(spec: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KinematicStep(spec)  # type: ignore[arg-type]


def test_a_model_without_a_spec_cannot_have_kinematics() -> None:
    with pytest.raises(ValueError, match="kinematics needs a spec"):
        WorldModel(kinematics=True)
