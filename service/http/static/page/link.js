/** A link that holds the whole view: scene, plans, step and what is shown. */

import { isRow } from "./scenes.js";

/** @import {Model, Plan} from "./types.js" */

/**
 * @typedef {object} Linked
 * @property {string} source name of an episode, "example" or "pasted"
 * @property {number} start
 * @property {{state: number[], actions: Plan | null} | null} pasted
 * @property {{plan: Plan, preset: string | null}[]} plans
 * @property {number | null} step null: that of the crash
 * @property {boolean} recorded
 * @property {boolean} fan
 * @property {boolean} why
 */

/** Other fragments are places of the page. */
const PREFIX = "#view=";

/**
 * Return a view as the fragment of a URL.
 *
 * @param {Linked} view
 */
export function fragmentOf(view) {
  const bytes = new TextEncoder().encode(JSON.stringify(view));
  const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return `${PREFIX}${text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}

/**
 * Return the view that a fragment holds; null if it is not meant to hold one. Whoever made the link is a stranger:
 * everything is looked at, and nothing else is taken over.
 *
 * @param {string} fragment
 * @param {Model} model
 * @param {number} horizon steps of a plan
 * @returns {Linked | null}
 * @throws {Error} it holds no view of this model
 */
export function viewIn(fragment, model, horizon) {
  if (!fragment.startsWith(PREFIX)) return null;
  const text = fragment.slice(PREFIX.length);
  try {
    const bytes = Uint8Array.from(
      atob(text.replaceAll("-", "+").replaceAll("_", "/")),
      (letter) => letter.charCodeAt(0),
    );
    const view = JSON.parse(new TextDecoder().decode(bytes));
    if (isView(view, model, horizon)) return known(view);
  } catch {
    // Not made by this page; said below.
  }
  throw new Error("This link is damaged, or it is of another model.");
}

/**
 * @param {Linked} view
 * @returns {Linked}
 */
function known({ source, start, pasted, plans, step, recorded, fan, why }) {
  return {
    source,
    start,
    pasted: pasted && { state: pasted.state, actions: pasted.actions },
    plans: plans.map(({ plan, preset }) => ({ plan, preset })),
    step,
    recorded: Boolean(recorded),
    fan: Boolean(fan),
    why: Boolean(why),
  };
}

/**
 * @param {any} view
 * @param {Model} model
 * @param {number} horizon
 */
function isView(view, model, horizon) {
  const [states, actions] = [model.features.state.length, model.features.action];
  const isPlan = (/** @type {any} */ plan) =>
    Array.isArray(plan)
    && plan.every(
      (row) =>
        isRow(row, actions.length)
        && row.every((/** @type {number} */ x, /** @type {number} */ i) =>
          x >= actions[i].low && x <= actions[i].high),
    );
  const isCount = (/** @type {any} */ x) => Number.isInteger(x) && x >= 0;
  return (
    typeof view.source === "string"
    && isCount(view.start)
    && (view.pasted === null
      || (isRow(view.pasted.state, states)
        && (view.pasted.actions === null || isPlan(view.pasted.actions))))
    && Array.isArray(view.plans)
    && [1, 2].includes(view.plans.length)
    && view.plans.every((/** @type {any} */ x) => isPlan(x.plan) && x.plan.length === horizon)
    && (view.step === null || (isCount(view.step) && view.step <= horizon))
  );
}
