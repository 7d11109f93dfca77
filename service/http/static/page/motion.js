/**
 * From predicted states to places in the ego's frame at the start: x ahead, y to the right, angles
 * clockwise, m and rad. Each state has its own frame, that of the ego at its instant.
 */

/** @import {Layout} from "./layout.js" */
/** @import {Plan, Point, Pose, Rectangle, RoadUser} from "./types.js" */

/** By how much bodies must overlap to touch, as the service counts it: `models/safety/contacts.py`. */
export const LEAST_CONTACT_M = 0.1;
const GRIP_MPS2 = 8;
const MAX_STEERING_RAD = 0.5;

/**
 * Return the largest wheel angle (rad) at a speed, by the model's convention "steering".
 *
 * @param {number} speed m/s
 * @param {number} length m, the wheelbase
 */
export function largestWheelAngle(speed, length) {
  return Math.min(MAX_STEERING_RAD, Math.atan((GRIP_MPS2 * length) / Math.max(speed, 1) ** 2));
}

/**
 * Return the steer that follows a path, by the same convention; 0 of who has no length.
 *
 * @param {number} curvature 1/m, positive to the right
 * @param {number} speed m/s
 * @param {number} length m
 */
export function steerAlong(curvature, speed, length) {
  if (!(length > 0)) return 0;
  const slip = Math.asin(Math.max(-1, Math.min(1, (curvature * length) / 2)));
  return Math.atan(2 * Math.tan(slip)) / largestWheelAngle(speed, length);
}

/**
 * Return where the ego is at each state: a kinematic bicycle at the predicted speeds.
 *
 * @param {Layout} layout
 * @param {number[][]} states [H+1][S]
 * @param {Plan} actions [H][A]; where it is shorter, its last action is held
 * @param {number} dt_s
 * @returns {Pose[]} [H+1]
 */
export function egoPoses(layout, states, actions, dt_s) {
  const poses = [{ x: 0, y: 0, heading: 0 }];
  for (let k = 0; k + 1 < states.length; k++) {
    const action = actions[Math.min(k, actions.length - 1)];
    const speed = states[k][layout.speed];
    const { length } = layout.size(states[k]);
    const angle = action[layout.steer] * largestWheelAngle(speed, length);
    const slip = Math.atan(Math.tan(angle) / 2);
    const { x, y, heading } = poses[k];
    poses.push({
      x: x + speed * Math.cos(heading + slip) * dt_s,
      y: y + speed * Math.sin(heading + slip) * dt_s,
      heading: heading + (length > 0 ? ((speed * Math.sin(slip)) / (length / 2)) * dt_s : 0),
    });
  }
  return poses;
}

/**
 * Return who is around the ego, in the frame that the pose is given in.
 *
 * @param {Layout} layout
 * @param {number[]} state
 * @param {Pose} ego
 * @param {number[]} [start] state that says who is there and how large
 * @returns {RoadUser[]}
 */
export function usersAt(layout, state, ego, start = state) {
  const sin = Math.sin(ego.heading);
  const cos = Math.cos(ego.heading);
  return layout.slots.flatMap((slot, i) => {
    if (!(start[slot.gate] > 0)) return [];
    const [dx, dy] = [state[slot.dx], state[slot.dy]];
    return {
      slot: i + 1,
      x: ego.x + cos * dx - sin * dy,
      y: ego.y + sin * dx + cos * dy,
      heading: ego.heading + state[slot.heading],
      speed: state[slot.speed],
      ...slot.size(start),
    };
  });
}

/**
 * @param {Layout} layout
 * @param {number[]} state
 * @param {Pose} pose
 * @returns {Rectangle}
 */
export function egoAt(layout, state, pose) {
  return { ...pose, ...layout.size(state) };
}

/**
 * Return a rectangle's corners, front left first, then clockwise.
 *
 * @param {Rectangle} rectangle
 * @returns {Point[]}
 */
export function corners({ x, y, heading, length, width }) {
  const sin = Math.sin(heading);
  const cos = Math.cos(heading);
  return [
    [1, -1],
    [1, 1],
    [-1, 1],
    [-1, -1],
  ].map(([ahead, right]) => ({
    x: x + (cos * ahead * length) / 2 - (sin * right * width) / 2,
    y: y + (sin * ahead * length) / 2 + (cos * right * width) / 2,
  }));
}

/**
 * Return how far two rectangles are apart, m: along that side of one of them along which they are
 * farthest apart. Negative: they overlap, by at least so much in each direction.
 *
 * @param {Rectangle} one
 * @param {Rectangle} other
 */
export function separation(one, other) {
  let largest = -Infinity;
  for (const turn of [0, Math.PI / 2]) {
    for (const { heading } of [one, other]) {
      const along = (/** @type {Point} */ p) =>
        p.x * Math.cos(heading + turn) + p.y * Math.sin(heading + turn);
      const a = corners(one).map(along);
      const b = corners(other).map(along);
      largest = Math.max(
        largest,
        Math.min(...b) - Math.max(...a),
        Math.min(...a) - Math.max(...b),
      );
    }
  }
  return largest;
}

/**
 * What is nearest to the ego after a step.
 *
 * @typedef {object} Nearest
 * @property {string} name "road user 2", "left road edge"
 * @property {number | null} slot of a road user
 * @property {number} gap_m negative: it overlaps, or the ego's centre is beyond the edge
 */

/**
 * Return what is nearest to the ego, edges beyond sight left out; null if there is nothing.
 *
 * @param {Layout} layout
 * @param {number[]} state
 * @param {number[]} [start] state that says who is there and how large
 * @returns {Nearest | null}
 */
export function nearest(layout, state, start = state) {
  const here = { x: 0, y: 0, heading: 0 };
  const ego = egoAt(layout, start, here);
  /** @type {Nearest[]} */
  const all = usersAt(layout, state, here, start).map((user) => ({
    name: `road user ${user.slot}`,
    slot: user.slot,
    gap_m: separation(ego, user),
  }));
  for (const [side, column] of /** @type {[string, number][]} */ ([
    ["left", layout.leftEdge],
    ["right", layout.rightEdge],
  ])) {
    if (state[column] < layout.edgeLimit_m) {
      all.push({ name: `${side} road edge`, slot: null, gap_m: state[column] });
    }
  }
  return all.sort((a, b) => a.gap_m - b.gap_m)[0] ?? null;
}

/**
 * Return the first step after which something touches the ego, in the predicted motion; who is there, and
 * how large, is that of the start.
 *
 * @param {Layout} layout
 * @param {number[][]} states [H+1][S]
 * @returns {(Nearest & {step: number}) | null}
 */
export function firstContact(layout, states) {
  for (let step = 1; step < states.length; step++) {
    const found = nearest(layout, states[step], states[0]);
    if (found && found.gap_m < -LEAST_CONTACT_M) return { ...found, step };
  }
  return null;
}

/**
 * Return the lines of the road that a state tells of: it bends evenly, as the lane does, for a quarter of
 * a circle at most.
 *
 * @param {Layout} layout
 * @param {number[]} state
 * @param {number} from m along the lane, negative behind the ego
 * @param {number} to
 * @returns {{name: "left" | "right" | "lane", points: Point[]}[]} edges in sight, the lane's centre
 */
export function roadLines(layout, state, from, to) {
  const start = -Math.asin(Math.max(-1, Math.min(1, state[layout.sinHeadingError])));
  const bend = state[layout.curvature];
  const reach = Math.PI / 2 / Math.abs(bend);
  const [first, last] = [Math.max(from, -reach), Math.min(to, reach)];
  const line = (/** @type {number} */ offset) => {
    const points = [];
    for (let i = 0; i <= 40; i++) {
      const s = first + ((last - first) * i) / 40;
      const angle = start + bend * s;
      // The chord of an arc: exact for any bend, and straight where there is none.
      const half = (bend * s) / 2;
      const chord = Math.abs(half) < 1e-9 ? s : (s * Math.sin(half)) / half;
      points.push({
        x: chord * Math.cos(start + half) - offset * Math.sin(angle),
        y: chord * Math.sin(start + half) + offset * Math.cos(angle),
      });
    }
    return points;
  };
  /** @type {{name: "left" | "right" | "lane", points: Point[]}[]} */
  const lines = [{ name: "lane", points: line(-state[layout.laneOffset]) }];
  if (state[layout.leftEdge] < layout.edgeLimit_m) {
    lines.push({ name: "left", points: line(-state[layout.leftEdge]) });
  }
  if (state[layout.rightEdge] < layout.edgeLimit_m) {
    lines.push({ name: "right", points: line(state[layout.rightEdge]) });
  }
  return lines;
}
