/** Plans: sequences of actions, and the presets that a person starts from. */

import { steerAlong } from "./motion.js";

/** @import {Layout} from "./layout.js" */
/** @import {Feature, Model, Plan, Scene} from "./types.js" */

/** Names of presets, in the order of their buttons. */
export const PRESETS = {
  recorded: "As recorded",
  keep: "Keep on",
  brake: "Brake",
  left: "Swerve left",
  right: "Swerve right",
};

/** @typedef {keyof typeof PRESETS} Preset */

/**
 * Return how many steps plans have: as many as were evaluated, if the service takes so many.
 *
 * @param {Model} model
 */
export function horizonOf(model) {
  const evaluated = model.thresholds.evaluated_horizon || 16;
  return Math.min(evaluated, model.max_horizon);
}

/**
 * Return a plan of a preset; null if there is none for this scene or this model.
 *
 * @param {Preset} preset
 * @param {Model} model
 * @param {Layout | null} layout null: only what came with the scene, or the middle of each range
 * @param {Scene} scene
 * @returns {Plan | null}
 */
export function presetPlan(preset, model, layout, scene) {
  const horizon = horizonOf(model);
  if (preset === "recorded") {
    const actions = scene.actions;
    if (!actions?.length) return null;
    return times(horizon, (k) => actions[Math.min(k, actions.length - 1)]);
  }
  if (!layout) {
    if (preset !== "keep") return null;
    return times(horizon, () => model.features.action.map(neutral));
  }
  const { length } = layout.size(scene.state);
  const along = steerAlong(scene.state[layout.curvature], scene.state[layout.speed], length);
  return times(horizon, (k) => {
    const action = model.features.action.map(neutral);
    const side = { left: -1, right: 1, keep: 0, brake: 0 }[preset];
    const aside = side * (k < horizon / 2 ? 0.5 : -0.5);
    action[layout.steer] = Math.max(-1, Math.min(1, along + aside));
    action[layout.brake] = preset === "brake" ? 1 : 0;
    return action;
  });
}

/**
 * Return what a car may do if its plan is refused: brake at several strengths, straight on or to a
 * side, swerve, or go on.
 *
 * @param {Model} model
 * @param {Layout} layout
 * @param {Scene} scene
 * @returns {Plan[]}
 */
export function fallbacks(model, layout, scene) {
  const plans = [];
  for (const preset of /** @type {Preset[]} */ (["keep", "left", "right"])) {
    for (const brake of [1, 0.6, 0.3, 0]) {
      const plan = /** @type {Plan} */ (presetPlan(preset, model, layout, scene));
      plans.push(plan.map((action) => action.map((v, i) => (i === layout.brake ? brake : v))));
    }
  }
  return plans.slice(0, model.max_rows);
}

/**
 * Return a plan with one number changed, within its range.
 *
 * @param {Plan} plan
 * @param {Feature[]} features of an action
 * @param {number} column
 * @param {number} from first step that is changed
 * @param {number} to last one
 * @param {number} value
 * @returns {Plan}
 */
export function changed(plan, features, column, from, to, value) {
  const { low, high } = features[column];
  const within = Math.max(low, Math.min(high, value));
  return plan.map((action, k) =>
    k < Math.min(from, to) || k > Math.max(from, to)
      ? action
      : action.map((old, i) => (i === column ? within : old)),
  );
}

/**
 * Return the value that does least: 0 if the range has it, else its middle.
 *
 * @param {Feature} feature
 */
export function neutral({ low, high }) {
  return low <= 0 && high >= 0 ? 0 : (low + high) / 2;
}

/**
 * @template T
 * @param {number} count
 * @param {(k: number) => T} make
 */
function times(count, make) {
  return Array.from({ length: count }, (_, k) => make(k));
}
