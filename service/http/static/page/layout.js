/** Which feature of the model is what, found by names: only then is there a view from above. */

/** @import {Model} from "./types.js" */

/** Sizes of those who have none in the state, as the service takes them. */
const ASSUMED_LENGTH_M = 5;
const ASSUMED_WIDTH_M = 2;

/**
 * Columns of a state and of an action.
 *
 * @typedef {object} Slot
 * @property {number} gate above 0 if somebody is there: a presence or a length
 * @property {number} dx
 * @property {number} dy
 * @property {number} heading
 * @property {number} speed
 * @property {(state: number[]) => {length: number, width: number}} size
 *
 * @typedef {object} Layout
 * @property {number} speed
 * @property {number} laneOffset
 * @property {number} sinHeadingError
 * @property {number} leftEdge
 * @property {number} rightEdge
 * @property {number} curvature
 * @property {(state: number[]) => {length: number, width: number}} size of the ego
 * @property {Slot[]} slots
 * @property {number} steer
 * @property {number} throttle
 * @property {number} brake
 * @property {number} edgeLimit_m edges this far or farther are not in sight
 */

/**
 * Return the layout of a model of a vehicle among road users; null for any other model.
 *
 * @param {Model} model
 * @returns {Layout | null}
 */
export function layoutOf(model) {
  const states = model.features.state.map((feature) => feature.name);
  const actions = model.features.action.map((feature) => feature.name);
  const state = (/** @type {string} */ name) => states.indexOf(name);
  const layout = {
    speed: state("speed"),
    laneOffset: state("lane_offset"),
    sinHeadingError: state("sin_heading_error"),
    leftEdge: state("left_edge"),
    rightEdge: state("right_edge"),
    curvature: state("curvature"),
    steer: actions.indexOf("steer"),
    throttle: actions.indexOf("throttle"),
    brake: actions.indexOf("brake"),
  };
  const isKnown = Object.values(layout).every((column) => column >= 0);
  if (!isKnown || model.frame !== "forward-right-down") return null;
  const slots = [];
  for (let number = 1; state(`neighbour_${number}_dx`) >= 0; number++) {
    const part = (/** @type {string} */ name) => state(`neighbour_${number}_${name}`);
    const presence = part("presence");
    slots.push({
      gate: presence >= 0 ? presence : part("length"),
      dx: part("dx"),
      dy: part("dy"),
      heading: part("heading"),
      speed: part("speed"),
      size: sizeOf(part("length"), part("width")),
    });
  }
  const limit = model.saturations.find((x) => x.feature === "left_edge")?.high;
  return {
    ...layout,
    slots,
    size: sizeOf(state("length"), state("width")),
    edgeLimit_m: limit ?? Infinity,
  };
}

/**
 * @param {number} length
 * @param {number} width
 */
function sizeOf(length, width) {
  return (/** @type {number[]} */ state) => ({
    length: length >= 0 ? state[length] : ASSUMED_LENGTH_M,
    width: width >= 0 ? state[width] : ASSUMED_WIDTH_M,
  });
}
