"""From tracks to a state: what a planner knows, in the order, units and signs of a model.

    builder = StateBuilder(client.model())                   # ISO 8855 axes, unless told otherwise
    road = Road([centre_line], left_edge, right_edge)        # points [P, 2] in m
    built = builder.update(time_s, Ego(...), [RoadUser(...), ...], road)
    client.safety_check(built.state, actions, dt_s=0.05, frame=builder.layout.frame)

In: poses, sizes and lines in a world frame, and the answer to `GET /model`.
Out: a state with who is in it, who is not, and why; actions for curvatures and accelerations.
May touch: nothing. It imports NumPy and the client's errors.
"""

from world_model_client.scene.assembly import (
    EGO_COLUMNS,
    OTHER_COLUMNS,
    RANGE_M,
    Assembled,
    assemble,
)
from world_model_client.scene.bicycle import Bicycle, Inferred
from world_model_client.scene.builder import COAST_S, FILTER_S, StateBuilder
from world_model_client.scene.frames import FORWARD_RIGHT_DOWN, FRAMES, ISO8855
from world_model_client.scene.layout import Layout
from world_model_client.scene.polylines import Polylines, Projection
from world_model_client.scene.rectangles import gap, moved_to_show
from world_model_client.scene.report import Built, LeftOut, Note
from world_model_client.scene.road import Place, Road
from world_model_client.scene.road_users import (
    TYPICAL_SIZES_M,
    Ego,
    RoadUser,
    centre_of,
    moved_on,
)
from world_model_client.scene.tracks import filtered

__all__ = [
    "COAST_S",
    "EGO_COLUMNS",
    "FILTER_S",
    "FORWARD_RIGHT_DOWN",
    "FRAMES",
    "ISO8855",
    "OTHER_COLUMNS",
    "RANGE_M",
    "TYPICAL_SIZES_M",
    "Assembled",
    "Bicycle",
    "Built",
    "Ego",
    "Inferred",
    "Layout",
    "LeftOut",
    "Note",
    "Place",
    "Polylines",
    "Projection",
    "Road",
    "RoadUser",
    "StateBuilder",
    "assemble",
    "centre_of",
    "filtered",
    "gap",
    "moved_on",
    "moved_to_show",
]
