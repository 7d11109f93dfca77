/** One plan with all that the model says about it. */

import { BEST } from "./chosen.js";
import { crashInWords, drawn, pairOf } from "./birdseye.js";
import { chartOf, short } from "./chart.js";
import { html, one } from "./dom.js";
import { Editor } from "./editor.js";
import { byStep, SIGNS, summary, wordsOf } from "./explain.js";
import { PRESETS } from "./plan.js";
import { inShort, sceneShares } from "./shares.js";
import { WhyList } from "./whylist.js";

/** @import {ChosenPlan} from "./chosen.js" */
/** @import {Layout} from "./layout.js" */
/** @import {Preset} from "./plan.js" */
/** @import {Timing} from "./api.js" */
/** @import {Attribution, Model, Plan, Scene, Verdict} from "./types.js" */

/**
 * What is known of a plan so far; what the service does not tell is null.
 *
 * @typedef {object} Result
 * @property {Plan} plan
 * @property {Verdict} verdict
 * @property {Timing} timing
 * @property {number[] | null} rewards
 * @property {number[][][] | null} members states of each [E][H+1][S]
 *
 * @typedef {object} Look what all panels show alike
 * @property {Model} model
 * @property {Layout | null} layout
 * @property {Scene} scene
 * @property {number} step
 * @property {boolean} showsRecorded
 * @property {boolean} showsFan
 * @property {Candidate[]} fan random plans
 *
 * @typedef {object} Known what a crash probability comes from
 * @property {Attribution | null} attribution
 * @property {string} state why there is none
 *
 * @typedef {object} Candidate
 * @property {Plan} plan
 * @property {number[][]} states [H+1][S]
 * @property {number} risk crash probability
 * @property {string} kind of risk: "calm", "doubtful" or "risky"
 */

export class Panel {
  /**
   * @param {string} title
   * @param {Model} model
   * @param {boolean} hasPresets whether the model is one of a vehicle
   * @param {{onPlan: (plan: Plan) => void, onPreset: (preset: Preset | typeof BEST) => void}} events
   */
  constructor(title, model, hasPresets, events) {
    const template = /** @type {HTMLTemplateElement} */ (one("#panel"));
    this.root = /** @type {HTMLElement} */ (template.content.cloneNode(true)).children[0];
    one("h2", this.root).textContent = title;
    /** @type {Result | null} that is shown */
    this.result = null;
    this.editor = new Editor(one(".editor", this.root), model.features.action, events.onPlan);
    this.list = new WhyList(one(".why", this.root));
    const row = one(".presets", this.root);
    row.setAttribute("aria-label", `Presets of ${title}`);
    /** @type {Map<Preset | typeof BEST, HTMLButtonElement>} */
    this.buttons = new Map();
    const presets = hasPresets ? [...Object.entries(PRESETS), [BEST, "Best fallback"]] : [
      ["recorded", "As given"],
      ["keep", "Do least"],
    ];
    for (const [name, text] of /** @type {[Preset | typeof BEST, string][]} */ (presets)) {
      const button = /** @type {HTMLButtonElement} */ (html("button", { type: "button" }, text));
      button.addEventListener("click", () => events.onPreset(name));
      this.buttons.set(name, button);
      row.append(button);
    }
  }

  /**
   * Show the plan itself, before the service has said anything about it.
   *
   * @param {ChosenPlan} chosen
   * @param {boolean} hasRecorded whether the scene came with actions
   */
  showPlan({ plan, preset }, hasRecorded) {
    this.editor.show(plan);
    for (const [name, button] of this.buttons) {
      button.setAttribute("aria-pressed", String(name === preset));
      button.disabled = name === "recorded" && !hasRecorded;
    }
  }

  /** @param {boolean} isStale whether what is shown is of what was chosen before */
  mark(isStale) {
    this.root.classList.toggle("stale", isStale);
    one(".verdict", this.root).setAttribute("aria-busy", String(isStale));
  }

  /** Show no answer. */
  clear() {
    this.result = null;
    for (const part of [".verdict", ".timing", ".above", ".charts"]) one(part, this.root).replaceChildren();
    one(".verdict", this.root).className = "verdict";
    one(".why-line", this.root).hidden = true;
    this.editor.hideShares();
    this.list.clear();
    this.mark(false);
  }

  /**
   * @param {Result} result
   * @param {Look} look
   * @param {Known | null} known null: nobody wants to see it
   */
  show(result, look, known) {
    // It is read aloud when it changes: moving in time is no reason to.
    if (result !== this.result) this.#showVerdict(result, look);
    this.result = result;
    const above = one(".above", this.root);
    const { layout } = look;
    if (!layout) {
      above.replaceChildren(featurePlots(result, look));
    } else if (hasPlaces(result.verdict.trajectory)) {
      above.replaceChildren(drawn({ ...viewOf(result, look, layout, known), width: above.clientWidth || 600 }));
    } else {
      above.replaceChildren(html("p", {}, "Nothing is drawn: some predicted places are no numbers."));
    }
    one(".charts", this.root).replaceChildren(...charts(result, look));
    this.#showWhy(result, look, known);
  }

  /**
   * @param {Result} result
   * @param {Look} look
   * @param {Known | null} known
   */
  #showWhy({ plan }, { model, scene }, known) {
    const line = one(".why-line", this.root);
    line.hidden = known === null;
    if (!known) {
      this.editor.hideShares();
      this.list.clear();
      return;
    }
    const { attribution, state } = known;
    const text = attribution ? inShort(attribution) : state;
    // It is read aloud when it is set.
    if (line.textContent !== text) line.textContent = text;
    // Of a curve that is dragged they would be those of another plan.
    this.editor.showShares(attribution && plan === this.editor.plan ? attribution.action : null);
    this.list.show(attribution, model, scene.state, plan);
  }

  /**
   * @param {Result} result
   * @param {Look} look
   */
  #showVerdict({ verdict, timing, plan }, look) {
    const place = one(".verdict", this.root);
    place.className = `verdict ${verdict.verdict}`;
    const parts = [
      html("p", { class: "word" }, `${SIGNS[verdict.verdict]} ${verdict.verdict}`),
      html("p", {}, summary(verdict)),
    ];
    const states = verdict.trajectory;
    if (look.layout && hasPlaces(states)) {
      const crashStep = crashStepOf(verdict, look.model);
      const pair = pairOf({ layout: look.layout, states, crashStep });
      if (pair) parts.push(html("p", {}, `In the predicted motion: ${crashInWords(pair, look.model.dt_s)}.`));
    }
    const reasons = verdict.reasons.map(({ rule, message }) => {
      const { title, advice } = wordsOf(rule);
      return html(
        "li",
        {},
        html("strong", {}, title),
        ` ${advice}`,
        html("div", { class: "detail" }, `${rule}: ${message}`),
      );
    });
    if (reasons.length) parts.push(html("ul", {}, ...reasons));
    const own = timing.parts && `; in the service: ${timing.parts}`;
    one(".timing", this.root).textContent = `${plan.length} steps, ${verdict.horizon_s} s. Answered in `
      + `${timing.total.toFixed(1)} ms as this browser saw it${own}.`;
    place.replaceChildren(...parts);
  }
}

/**
 * Return whether all of predicted states are numbers: null stands for what is not finite.
 *
 * @param {(number | null)[][]} states
 */
export function hasPlaces(states) {
  return states.every((state) => state.every(Number.isFinite));
}

/**
 * Return the step of the predicted crash, or the last one.
 *
 * @param {Result} result
 * @param {Model} model
 * @param {Layout | null} layout
 */
export function endOf({ verdict, plan }, model, layout) {
  const crashStep = crashStepOf(verdict, model);
  const states = verdict.trajectory;
  const pair = layout && hasPlaces(states) ? pairOf({ layout, states, crashStep }) : null;
  return pair?.step ?? crashStep ?? plan.length;
}

/**
 * Return the step after which the probability reaches the threshold.
 *
 * @param {Verdict} verdict
 * @param {Model} model
 */
function crashStepOf(verdict, model) {
  const time = verdict.time_to_crash_s;
  return time === null ? null : Math.round(time / model.dt_s);
}

/**
 * @param {Result} result
 * @param {Look} look
 * @param {Layout} layout
 * @param {Known | null} known
 */
function viewOf({ verdict, plan, members }, look, layout, known) {
  const { scene, model } = look;
  const isShown = look.showsRecorded && scene.future && scene.actions;
  return {
    layout,
    states: verdict.trajectory,
    plan,
    dt_s: model.dt_s,
    step: Math.min(look.step, plan.length),
    crashStep: crashStepOf(verdict, model),
    members,
    recorded: isShown ? { states: scene.future ?? [], actions: scene.actions ?? [] } : null,
    fan: look.showsFan ? look.fan : [],
    shares: known?.attribution ? sceneShares(known.attribution) : null,
  };
}

/**
 * @param {Result} result
 * @param {Look} look
 */
function charts({ verdict, rewards, plan }, { model, step }) {
  const { dt_s } = model;
  const times = plan.map((_, k) => Number(((k + 1) * dt_s).toFixed(9)));
  const marked = step * dt_s;
  const limits = [];
  if (verdict.threshold !== null) limits.push({ value: verdict.threshold, name: "unsafe from" });
  const { safe_below } = model.thresholds;
  if (safe_below !== null && safe_below !== undefined) limits.push({ value: safe_below, name: "safe below" });
  const cumulated = verdict.crash_probability_by_step;
  const made = [
    chartOf({
      title: "Crash probability",
      unit: "",
      times,
      marked,
      limits,
      fromZero: true,
      most: 1,
      lines: [
        { name: "until then", values: cumulated, kind: "first" },
        { name: "at that step", values: byStep(cumulated), kind: "second" },
      ],
    }),
  ];
  // Without rewards it is empty, so that nothing moves while a plan is dragged.
  made.push(
    chartOf({
      title: "Reward of each step",
      unit: "",
      times,
      marked,
      lines: [{ name: "reward", values: rewards ?? plan.map(() => null), kind: "first" }],
    }),
  );
  const { uncertainty, expected_error_m } = model.thresholds;
  made.push(
    meterOf("Uncertainty: disagreement of the members, standard deviations", verdict.uncertainty, uncertainty),
  );
  if (verdict.expected_error_m !== undefined) {
    made.push(
      meterOf("Expected error of predicted places, m", verdict.expected_error_m, expected_error_m ?? null),
    );
  }
  return made;
}

/**
 * @param {string} title
 * @param {number | null} value
 * @param {number | null} limit
 */
function meterOf(title, value, limit) {
  const known = value === null ? "not known" : short(value);
  const text = limit === null ? `${known}, no limit is set` : `${known} of at most ${short(limit)}`;
  const figure = html("figure", { class: "measure" }, html("figcaption", {}, `${title}: ${text}`));
  if (value !== null && limit !== null) {
    const isOver = value > limit;
    if (isOver) figure.append(html("strong", {}, "✕ over the limit"));
    const most = Math.max(2 * limit, value);
    figure.append(
      html("meter", { min: 0, max: most, high: limit, optimum: 0, value, "aria-label": `${title}: ${text}` }),
    );
  }
  return figure;
}

/**
 * Return one plot a state feature: what there is to see of a model of anything.
 *
 * @param {Result} result
 * @param {Look} look
 */
function featurePlots({ verdict, members }, { model, step, scene, showsRecorded, showsFan, fan }) {
  const states = verdict.trajectory;
  const times = states.map((_, k) => k * model.dt_s);
  const plots = model.features.state.map((feature, i) => {
    const of = (/** @type {number[][]} */ rows) => states.map((_, k) => rows[k]?.[i] ?? null);
    const lines = [{ name: "predicted", values: of(states), kind: "first" }];
    for (const member of members ?? []) {
      lines.push({ name: "member", values: of(member), kind: "second" });
    }
    for (const { states: path, kind } of showsFan ? fan : []) {
      lines.push({ name: `${kind} random plan`, values: of(path), kind: `fan ${kind}` });
    }
    if (showsRecorded && scene.future) {
      lines.push({ name: "recorded", values: of(scene.future), kind: "third" });
    }
    return chartOf({ title: feature.name, unit: feature.unit, times, marked: step * model.dt_s, lines });
  });
  return html("div", { class: "plots" }, ...plots);
}
