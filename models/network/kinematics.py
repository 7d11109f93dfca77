"""One step of exact and assumed motion: what a learned model only has to correct.

The ego is a kinematic bicycle under its action, on a road that bends evenly. Neighbours keep
their acceleration and their turn rate, where the state has them (constant turn rate and
acceleration, CTRA: Schubert, Richter, Wanielik 2008, "Comparison and evaluation of advanced motion
models for vehicle tracking"); they move as bicycles too, so a turning car's centre slips sideways.
All of it is explicit Euler, as the simulator's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layout import MOST_SIN, SHORTEST_M, SLOWEST_MPS
from models.network.columns import MOVED_SLOT_KINDS, SlotReader
from models.network.rows import columnwise
from models.spec import Geometry, Kinematics, Spec


class KinematicStep(nn.Module):
    """State and action to the next state, without anything learned; differentiable.

    Args:
        spec: Must name kinematics and a geometry, and have no state features beside theirs.

    Raises:
        ValueError: The spec does not.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        car, geometry = spec.kinematics, spec.geometry
        if car is None or geometry is None:
            raise ValueError(f"spec {spec.name!r} names no kinematics and geometry")
        self.car = car
        self.dt_s = spec.dt_s
        self.has_lengths = any(slot.length is not None for slot in geometry.slots)
        kinds = {"gate": 0.0, **dict.fromkeys(MOVED_SLOT_KINDS, 0.0)}
        if self.has_lengths:
            kinds["length"] = car.length_m
        self.reader = SlotReader(spec, car.state_features, kinds)
        actions = torch.tensor([spec.action_index(name) for name in car.action_features])
        self.register_buffer("places", _places(spec, car, geometry), persistent=False)
        self.register_buffer("action_columns", actions, persistent=False)

    places: Tensor
    action_columns: Tensor

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """Move everything by one step.

        Args:
            state: [..., B, S], physical units.
            action: [..., B, A].

        Returns:
            [..., B, S]; presences and sizes, and features of who is not there, as they are.
        """
        ego, gates, *slots = self.reader(state)
        moved, forward, sideways, turned = self._ego(torch.split(ego, 1, dim=-1), action)
        there = self.reader.there(gates)
        parts = [*moved, *self._neighbours(slots, there, forward, sideways, turned), state]
        return torch.cat(parts, dim=-1).index_select(-1, self.places)

    def _ego(
        self, ego: tuple[Tensor, ...], action: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Return the ego's features after the step, and its motion in its own frame.

        The motion is forward m, sideways m (to the right), and turn rad; all [..., B, 1].
        """
        car, dt_s = self.car, self.dt_s
        speed, offset, sin_error, left, right, curvature, *size = ego
        length = size[0].clamp_min(SHORTEST_M) if size else car.length_m
        pedals = action.index_select(-1, self.action_columns)
        steer, throttle, brake = torch.split(pedals, 1, dim=-1)
        wanted = car.full_throttle_mps2 * throttle - car.full_brake_mps2 * brake
        limits = -speed / dt_s, (car.max_speed_mps - speed) / dt_s
        acceleration = torch.minimum(torch.maximum(wanted, limits[0]), limits[1])
        grip = car.grip_mps2 * length / speed.clamp_min(1.0).square()
        wheel = steer * columnwise(torch.atan, grip).clamp_max(car.max_steering_rad)
        # The centre is halfway between the axles: tan(slip) = tan(wheel) / 2.
        tan_slip = 0.5 * columnwise(torch.tan, wheel)
        cos_slip = (1 + tan_slip.square()).sqrt().reciprocal()
        sin_slip = tan_slip * cos_slip
        path = speed * dt_s
        forward, sideways = path * cos_slip, path * sin_slip
        turned = path * sin_slip * (2 / length)
        # The same motion along and across the lane, which itself turns meanwhile.
        sin_error = sin_error.clamp(-MOST_SIN, MOST_SIN)
        cos_error = (1 - sin_error.square()).sqrt()
        along = forward * cos_error - sideways * sin_error
        bend = curvature * along
        across = forward * sin_error + sideways * cos_error - 0.5 * bend * along
        sin, cos = _small_angle(turned - bend)
        moved = [
            speed + acceleration * dt_s,
            offset + across,
            sin_error * cos + cos_error * sin,
            left + across,
            right - across,
            curvature,
        ]
        return moved, forward, sideways, turned

    def _neighbours(
        self,
        slots: Sequence[Tensor],
        there: Tensor,
        forward: Tensor,
        sideways: Tensor,
        turned: Tensor,
    ) -> list[Tensor]:
        """Return what changes of the slots' features, seen from the ego after its motion."""
        dt_s = self.dt_s
        dx, dy, heading, speed, acceleration, yaw_rate, *sizes = slots
        length = sizes[0] if sizes else self.car.length_m
        sin_h, cos_h = columnwise(torch.sin, heading), columnwise(torch.cos, heading)
        slip = yaw_rate * (length / 2) / speed.clamp_min(SLOWEST_MPS)
        sin_slip = slip.clamp(-MOST_SIN, MOST_SIN)
        cos_slip = (1 - sin_slip.square()).sqrt()
        path = speed * dt_s
        ahead = dx + path * (cos_h * cos_slip - sin_h * sin_slip) - forward
        aside = dy + path * (sin_h * cos_slip + cos_h * sin_slip) - sideways
        sin, cos = _small_angle(turned)
        faster = speed + acceleration * dt_s
        # A braking car stops; it neither reverses nor turns any more.
        goes_on = (faster > 0).to(speed.dtype)
        after = [
            cos * ahead + sin * aside,
            cos * aside - sin * ahead,
            heading + yaw_rate * dt_s - turned,
            faster * goes_on,
            acceleration * goes_on,
            yaw_rate * goes_on,
        ]
        return [x + there * (y - x) for x, y in zip(slots, after, strict=False)]


def _places(spec: Spec, car: Kinematics, geometry: Geometry) -> Tensor:
    """Return where each state feature [S] is among those of a step.

    These are the ego's that move, those of all slots that move, kind by kind, and the state before.

    Raises:
        ValueError: A feature is none of these, and no presence or size.
    """
    slots = geometry.slots
    names = [*car.moved_features, *(getattr(x, kind) for kind in MOVED_SLOT_KINDS for x in slots)]
    constant = {*geometry.size_features, *(name for slot in slots for name in slot.constants)}
    places = []
    for column, feature in enumerate(spec.state):
        if feature.name in names:
            places.append(names.index(feature.name))
        elif feature.name in constant:
            places.append(len(names) + column)
        else:
            raise ValueError(
                f"spec {spec.name!r} has the state feature {feature.name!r}, which no kinematics "
                "covers"
            )
    return torch.tensor(places)


def _small_angle(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return sine and cosine of an angle far below 1 rad, by their series.

    Plain arithmetic, so its bits never depend on vector lanes. Exact to float32 below 0.2 rad.
    """
    square = angle.square()
    sin = angle * (1 - square * (1 / 6 - square / 120))
    return sin, 1 - square * (0.5 - square * (1 / 24 - square / 720))
