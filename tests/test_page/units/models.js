/** Models and states for tests. */

/** A model in the layout of the bundled one, with one neighbour. */
export function roadModel() {
  const state = [
    ...["speed", "lane_offset", "sin_heading_error", "left_edge", "right_edge", "curvature"],
    ...["length", "width"],
    ...["length", "width", "dx", "dy", "heading", "speed"].map((part) => `neighbour_1_${part}`),
  ];
  const feature = (name) => ({ name, unit: "m", low: -20, high: 45, meaning: name });
  return {
    name: "cars",
    version: "v1",
    device: "cpu",
    members: 3,
    dt_s: 0.05,
    frame: "forward-right-down",
    example: null,
    saturations: [{ feature: "left_edge", low: null, high: 16 }],
    road_users: [],
    max_horizon: 64,
    max_rows: 4096,
    features: {
      state: state.map(feature),
      action: [
        { ...feature("steer"), low: -1, high: 1 },
        { ...feature("throttle"), low: 0, high: 1 },
        { ...feature("brake"), low: 0, high: 1 },
      ],
    },
    thresholds: { crash_probability: 0.1, uncertainty: 0.4, evaluated_horizon: 16 },
  };
}

/** An ego of 4 x 2 m in the middle of a straight road of 8 m, with somebody of that size. */
export function stateWith({ dx = 20, dy = 0, speed = 10, curvature = 0, left = 4, there = true }) {
  const other = there ? [4, 2, dx, dy, 0, 5] : [0, 0, 0, 0, 0, 0];
  return [speed, 0, 0, left, 4, curvature, 4, 2, ...other];
}
