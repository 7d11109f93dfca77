/** Many random plans from one state, to see which ways out there are. */

import { percent } from "./explain.js";
import { neutral } from "./plan.js";

/** @import {Model, Plan, Thresholds} from "./types.js" */

export const COUNT = 64;
/** Actions stay for some steps, as a driver's do: independent ones would cancel each other. */
const HELD_STEPS = 4;
/** Limits of models that have none of their own. */
const RISKY_FROM = 0.5;
const CALM_BELOW = 0.01;

/**
 * Return random plans, the same ones at each call.
 *
 * @param {Model} model
 * @param {Plan} around the plan that they vary
 * @returns {Plan[]} [COUNT][H][A], fewer if the service takes fewer
 */
export function randomPlans(model, around) {
  const random = generator(1);
  return Array.from({ length: Math.min(COUNT, model.max_rows) }, () => {
    /** @type {number[]} */
    let held = [];
    return around.map((action, k) => {
      if (k % HELD_STEPS === 0) {
        held = model.features.action.map((feature) => {
          // Half of all values are neutral: or nearly all plans would brake and accelerate at once.
          if (random() < 0.5) return NaN;
          return feature.low + random() * (feature.high - feature.low);
        });
      }
      return action.map((value, i) => {
        const chosen = Number.isNaN(held[i]) ? neutral(model.features.action[i]) : held[i];
        const { low, high } = model.features.action[i];
        const mixed = low < 0 ? value + chosen / 2 : chosen;
        return Number(Math.max(low, Math.min(high, mixed)).toFixed(3));
      });
    });
  });
}

/**
 * @param {number} probability
 * @param {Pick<Thresholds, "crash_probability" | "safe_below">} thresholds of the model
 * @returns {string} "calm", "doubtful" or "risky"
 */
export function riskOf(probability, { crash_probability, safe_below }) {
  if (probability >= (crash_probability ?? RISKY_FROM)) return "risky";
  return probability < (safe_below ?? CALM_BELOW) ? "calm" : "doubtful";
}

/**
 * Return a generator of numbers from 0 to 1 (mulberry32, public domain).
 *
 * @param {number} seed
 */
function generator(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/**
 * Return what a fan shows, in words.
 *
 * @param {{risk: number, kind: string}[]} fan
 * @param {Pick<Thresholds, "crash_probability" | "safe_below">} thresholds
 */
export function inFan(fan, { crash_probability, safe_below }) {
  const risky = fan.filter(({ kind }) => kind === "risky").length;
  const least = Math.min(...fan.map(({ risk }) => risk));
  const limit = crash_probability === null ? `${RISKY_FROM}, as no threshold is set` : "the threshold";
  return `${fan.length} random plans: ${risky} reach ${limit} (dotted); the lowest crash probability is `
    + `${percent(least)}. Solid lines: below ${percent(safe_below ?? CALM_BELOW)}; dashed: between.`;
}
