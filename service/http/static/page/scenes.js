/** Where predictions start: bundled episodes, the model's own example, or what a person pastes. */

import { horizonOf } from "./plan.js";

/** @import {Model, Plan, Scene} from "./types.js" */

/**
 * @typedef {object} Episode
 * @property {string} name
 * @property {string} title
 * @property {"crash" | "off_road" | "none"} outcome
 * @property {number[][]} states [T+1][S]
 * @property {Plan} actions [T][A]
 *
 * @typedef {{state_features: string[], action_features: string[], episodes: Episode[]}} Bundled
 */

/** Fields of a body that are shown, are compared, or only choose what is answered. */
const TAKEN = ["state", "action", "actions", "frame", "dt_s", "include", "outputs"];
/** Steps that a recording must still have at its start. */
const LEAST_STEPS = 4;
/** Steps before the end at which a recording that ends badly is first shown. */
const BEFORE_END = 12;

/**
 * Return the episodes that the model understands: all or none.
 *
 * @param {Bundled} bundled
 * @param {Model} model
 * @returns {Episode[]}
 */
export function usable(bundled, model) {
  const isSame = (/** @type {string[]} */ names, /** @type {{name: string}[]} */ features) =>
    names.length === features.length && names.every((name, i) => name === features[i].name);
  return isSame(bundled.state_features, model.features.state)
    && isSame(bundled.action_features, model.features.action)
    ? bundled.episodes
    : [];
}

/**
 * Return the last step at which a scene of an episode can start.
 *
 * @param {Episode} episode
 */
export function lastStart(episode) {
  return episode.actions.length - LEAST_STEPS;
}

/**
 * Return the step at which an episode is first shown.
 *
 * @param {Episode} episode
 */
export function firstShown(episode) {
  return episode.outcome === "none" ? 0 : Math.max(0, episode.actions.length - BEFORE_END);
}

/**
 * @param {Episode} episode
 * @param {number} start step of the episode
 * @returns {Scene}
 */
export function sceneOf(episode, start) {
  return {
    title: episode.title,
    state: episode.states[start],
    actions: episode.actions.slice(start),
    future: episode.states.slice(start),
  };
}

/**
 * Return the scene that the model itself gives as an example, or one in the middle of what it knows.
 *
 * @param {Model} model
 * @returns {Scene}
 */
export function exampleScene(model) {
  if (model.example) {
    const { scene, state, action } = model.example;
    return { title: scene, state, actions: [action], future: null };
  }
  const state = model.features.state.map((feature) => {
    const low = feature.trained_low ?? feature.low;
    const high = feature.trained_high ?? feature.high;
    return low <= 0 && high >= 0 ? 0 : (low + high) / 2;
  });
  return { title: "a state in the middle of what the model knows", state, actions: null, future: null };
}

/**
 * Read what a person pasted: a state, or the body of a request. The title of the scene says what of it
 * is not shown as it was given.
 *
 * @param {string} text
 * @param {Model} model
 * @returns {Scene}
 * @throws {Error} saying what is wrong
 */
export function pastedScene(text, model) {
  let given;
  try {
    given = JSON.parse(text);
  } catch {
    throw new Error("This is no JSON.");
  }
  const [states, actions] = [model.features.state.length, model.features.action.length];
  const body = Array.isArray(given) ? { state: given } : (given ?? {});
  const frame = body.frame ?? model.frame;
  if (frame !== model.frame) {
    throw new Error(`"frame" is ${JSON.stringify(frame)}; that of this model is ${JSON.stringify(model.frame)}.`);
  }
  const dt_s = body.dt_s ?? model.dt_s;
  if (!(Math.abs(dt_s - model.dt_s) < 1e-6 * model.dt_s)) {
    throw new Error(`"dt_s" is ${JSON.stringify(dt_s)}; that of this model is ${model.dt_s}.`);
  }
  const state = Array.isArray(body.state?.[0]) ? body.state[0] : body.state;
  if (!isRow(state, states)) {
    throw new Error(`A state of this model is a list of ${states} numbers; "state" in a body.`);
  }
  let plan = body.actions ?? (body.action && [body.action]) ?? null;
  const sequences = Array.isArray(plan?.[0]?.[0]) ? plan.length : 1;
  if (Array.isArray(plan?.[0]?.[0])) [plan] = plan;
  if (plan && !(Array.isArray(plan) && plan.length && plan.every((row) => isRow(row, actions)))) {
    throw new Error(`An action of this model is a list of ${actions} numbers.`);
  }
  const steps = plan?.length ?? 0;
  const horizon = horizonOf(model);
  const left = Object.keys(body).filter((name) => !TAKEN.includes(name));
  const title = [
    "pasted",
    Array.isArray(body.state[0]) && body.state.length > 1 && `the first of ${body.state.length} states`,
    sequences > 1 && `the first of ${sequences} sequences of actions`,
    steps > horizon && `its first ${horizon} of ${steps} actions`,
    plan && steps < horizon && `its last action is held until step ${horizon}`,
    left.length && `left out: ${left.join(", ")}`,
  ].filter(Boolean).join("; ");
  return { title, state, actions: plan, future: null };
}

/**
 * Return whether something is a list of so many finite numbers.
 *
 * @param {unknown} row
 * @param {number} count
 */
export function isRow(row, count) {
  return Array.isArray(row) && row.length === count && row.every(Number.isFinite);
}
