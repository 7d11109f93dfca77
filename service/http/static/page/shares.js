/** What a crash probability comes from: an attribution in order, in numbers to be drawn and in plain words. */

import { short } from "./chart.js";
import { percent } from "./explain.js";

/** @import {Attribution, Feature, Plan} from "./types.js" */

/** Smaller shares are shown as none. */
const LEAST = 0.0005;
/** Less of the largest share of all is not written on the scene: it would cover what matters. */
const LEAST_OF_LARGEST = 0.01;

/** @type {Record<string, string>} */
const BASELINES = {
  alone: "everybody is as far away as the model knows and goes straight on as fast as the ego, the road is "
    + "straight and wide, and the ego follows it without steering, throttle or brake",
  training_mean: "the mean of all states of the training, with actions at 0",
};

/**
 * One feature's part.
 *
 * @typedef {object} Row
 * @property {string} name
 * @property {string} meaning
 * @property {number} share of the crash probability
 * @property {string} here its value, with its unit
 * @property {string} baseline
 * @property {string} spread
 * @property {string[]} changed "if this were x, it would be y"
 */

/**
 * Shares by what is drawn; null where there is none.
 *
 * @typedef {object} SceneShares
 * @property {Map<number, number>} users by slot
 * @property {number | null} ego what it does: the actions
 * @property {Record<"left" | "right" | "lane", number | null>} road its edges; all else of the road
 */

/**
 * Return a share in words: "+95 %", "−0.4 %".
 *
 * @param {number | null} share
 */
export function signed(share) {
  if (share === null) return "no number";
  if (Math.abs(share) < LEAST) return "±0\u00a0%";
  const size = Math.abs(100 * share);
  return `${share < 0 ? "−" : "+"}${size.toFixed(size < 9.95 ? 1 : 0)}\u00a0%`;
}

/**
 * Return whether a share adds to the crash probability, takes from it, or neither.
 *
 * @param {number | null} share
 * @returns {"adds" | "takes" | "none"}
 */
export function kindOf(share) {
  if (share === null || Math.abs(share) < LEAST) return "none";
  return share > 0 ? "adds" : "takes";
}

/**
 * Return a group's name in words.
 *
 * @param {string} name
 */
export function groupName(name) {
  const user = /^neighbour_(\d+)$/.exec(name);
  if (user) return `road user ${user[1]}`;
  return { road: "the road", actions: "the actions", others: "all else" }[name] ?? name;
}

/**
 * Return the features that have a share, the largest first, whatever its sign; how many of them are not tiny;
 * and how many have none.
 *
 * @param {Attribution} attribution
 * @param {{state: Feature[], action: Feature[]}} features of the model
 * @param {number[]} state
 * @param {Plan} plan
 * @returns {{rows: Row[], notable: number, without: number}}
 */
export function rowsOf({ state: ofState, action: ofAction }, features, state, plan) {
  const rows = [
    ...ofState.map(({ name, unit, baseline, contribution, spread, lower, higher }, i) => ({
      name,
      meaning: whose(name) + features.state[i].meaning,
      share: contribution ?? 0,
      here: withUnit(state[i], unit),
      baseline: withUnit(baseline, unit),
      spread: withUnit(spread, unit),
      changed: [lower, higher].flatMap(({ value, crash_probability: p }) =>
        value === null || p === null ? [] : [`if it were ${withUnit(value, unit)}: ${percent(p)}`],
      ),
    })),
    ...ofAction.map(({ name, unit, baseline, contribution, spread, lower, higher }, i) => ({
      name,
      meaning: features.action[i].meaning,
      share: contribution ?? 0,
      here: rangeOf(plan.map((action) => action[i]), unit),
      baseline: withUnit(baseline, unit),
      spread: withUnit(spread, unit),
      changed: [{ ...lower, way: "less" }, { ...higher, way: "more" }].flatMap(({ way, crash_probability: p }) =>
        p === null ? [] : [`if it were ${withUnit(spread, unit)} ${way} in all steps, within its range: ${percent(p)}`],
      ),
    })),
  ];
  const shown = rows.filter(({ share }) => share !== 0);
  shown.sort((a, b) => Math.abs(b.share) - Math.abs(a.share));
  const notable = shown.filter(({ share }) => kindOf(share) !== "none").length;
  return { rows: shown, notable, without: rows.length - shown.length };
}

/**
 * Return whose a feature is, where its name says so: "of road user 1: ".
 *
 * @param {string} name
 */
function whose(name) {
  const user = /^neighbour_(\d+)_/.exec(name);
  return user ? `of road user ${user[1]}: ` : "";
}

/**
 * @param {number | null} value
 * @param {string} unit
 */
function withUnit(value, unit) {
  if (value === null) return "no number";
  return unit === "" || unit === "1" ? short(value) : `${short(value)}\u00a0${unit}`;
}

/**
 * @param {number[]} values
 * @param {string} unit
 */
function rangeOf(values, unit) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low === high ? withUnit(low, unit) : `${withUnit(low, unit)} to ${withUnit(high, unit)}`;
}

/**
 * Return what is drawn on the scene.
 *
 * @param {Attribution} attribution
 * @returns {SceneShares}
 */
export function sceneShares({ groups, state }) {
  /** @type {Map<number, number>} */
  const users = new Map();
  let [ego, road] = [/** @type {number | null} */ (null), /** @type {number | null} */ (null)];
  for (const { name, contribution } of groups) {
    const user = /^neighbour_(\d+)$/.exec(name);
    if (user && contribution !== null) users.set(Number(user[1]), contribution);
    if (name === "actions") ego = contribution;
    if (name === "road") road = contribution;
  }
  const of = (/** @type {string} */ name) => state.find((part) => part.name === name)?.contribution ?? null;
  const [left, right] = [of("left_edge"), of("right_edge")];
  const lane = road === null ? null : road - (left ?? 0) - (right ?? 0);
  return { users, ego, road: { left, right, lane } };
}

/**
 * Return the least share that is written on the scene.
 *
 * @param {SceneShares} shares
 */
export function leastWritten({ users, ego, road }) {
  const sizes = [...users.values(), ego, ...Object.values(road)].map((share) => Math.abs(share ?? 0));
  return Math.max(LEAST, LEAST_OF_LARGEST * Math.max(...sizes));
}

/**
 * Return in a line who and what has the largest shares.
 *
 * @param {Attribution} attribution
 */
export function inShort({ groups, crash_probability }) {
  const named = groups
    .filter(({ contribution }) => kindOf(contribution) !== "none")
    .slice(0, 3)
    .map(({ name, contribution }) => `${groupName(name)} ${signed(contribution)}`);
  const whole = crash_probability === null ? "" : ` ${percent(crash_probability)}`;
  return named.length
    ? `Why${whole}: ${named.join(", ")}. All of it is listed below.`
    : `Why${whole}: nothing here adds to the crash probability.`;
}

/**
 * Return how the shares add up, and what they are compared with, in sentences.
 *
 * @param {Attribution} attribution
 * @returns {string[]}
 */
export function sumInWords({ baseline, baseline_crash_probability: p0, crash_probability: p, residual, groups }) {
  const meant = BASELINES[baseline] ? `: ${BASELINES[baseline]}` : "";
  const sentences = [`This scene is compared with a baseline, “${baseline.replaceAll("_", " ")}”${meant}.`];
  if (p === null || p0 === null || residual === null) {
    sentences.push("Some of the numbers are none, so nothing adds up here.");
    return sentences;
  }
  const all = groups.reduce((sum, { contribution }) => sum + (contribution ?? 0), 0);
  sentences.push(
    `There the crash probability is ${percent(p0)}, here ${percent(p)}. The difference is shared out: `
      + `${signed(all)} in all, in percentage points. ${signed(residual)} is left over (the residual), as the `
      + "way between the two is looked at in a few points only.",
  );
  return sentences;
}

/** What an attribution is not. */
export const CAUTION = "Shares say what the model's number depends on, compared with the baseline. They are no proof of "
  + "what causes a crash on a road. “If it were” changes one thing alone; such a scene may be one that cannot be.";

/**
 * Return the shares of an action feature by step, in words.
 *
 * @param {{name: string, contribution: number | null, contribution_by_step: (number | null)[]}} action
 */
export function stepsInWords({ name, contribution, contribution_by_step: shares }) {
  const sizes = shares.map((share) => Math.abs(share ?? 0));
  const most = sizes.indexOf(Math.max(...sizes));
  const at = kindOf(shares[most]) === "none" ? "" : `, most in step ${most + 1}: ${signed(shares[most])}`;
  return `Share of ${name}: ${signed(contribution)} in all${at}`;
}
