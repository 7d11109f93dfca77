/** Verdicts and their reasons in plain words, and what a person may do about them. */

/** @import {Model, Verdict} from "./types.js" */

/** @type {Record<string, {title: string, advice: string}>} */
export const RULES = {
  crash_probability: {
    title: "The model expects a crash, or that the ego leaves the road.",
    advice: "Change the plan: try to brake or to swerve, or ask for the best fallback.",
  },
  crash_not_excluded: {
    title: "A crash is not likely, but cannot be excluded either.",
    advice: "Look for a plan with a lower crash probability; until then, treat this one as not safe.",
  },
  predicted_contact: {
    title: "In the predicted motion the ego touches somebody or leaves the road.",
    advice: "Leave this plan alone, also where the crash probability is low.",
  },
  physics_contact: {
    title: "By physics alone the ego touches somebody or leaves the road: if it drives as planned and all "
      + "others keep their speeds and turns.",
    advice: "Leave this plan alone, whatever the crash probability is, unless you know that the others will "
      + "make room.",
  },
  input_out_of_range: {
    title: "The state lies outside what the model was trained on.",
    advice: "Check units and signs of the features named here. If they are right, the model does not "
      + "know such a scene.",
  },
  input_impossible: {
    title: "The state cannot be, or is a crash already.",
    advice: "Check sizes, places and the order of the road users. If a crash has happened, nothing is "
      + "left to predict.",
  },
  not_finite: {
    title: "The prediction is no usable number.",
    advice: "Do not use it. Tell the operator: the model fails on this state.",
  },
  not_calibrated: {
    title: "This model has no crash threshold that holds.",
    advice: "Probabilities can be compared with each other, but nothing is safe by them. The operator "
      + "can calibrate the model, or serve all of its members.",
  },
  uncertain: {
    title: "The members of the ensemble disagree too much.",
    advice: "The model has seen little like this. Treat the plan as not safe; a gentler one may be "
      + "known better.",
  },
  uncertainty_unavailable: {
    title: "Nothing tells how sure the model is.",
    advice: "Disagreement needs a calibrated ensemble of at least two members; ask the operator.",
  },
  horizon_not_evaluated: {
    title: "The plan is longer than what was evaluated.",
    advice: "Ask about a shorter plan.",
  },
};

/** Shapes beside the words, so that colour is not all that tells them apart. */
export const SIGNS = { safe: "✓", unsafe: "✕", unknown: "?" };

/**
 * Return one sentence on what the verdict means.
 *
 * @param {Verdict} verdict
 */
export function summary(verdict) {
  const horizon = `${verdict.horizon_s} s`;
  const probability = verdict.crash_probability;
  const p = probability === null ? "" : ` (probability ${percent(probability)})`;
  if (verdict.verdict === "safe") {
    return `No crash is expected within ${horizon}${p}. That does not mean that one can still be `
      + "avoided later.";
  }
  if (verdict.verdict === "unsafe") {
    const first = verdict.time_to_crash_s === null ? "" : `, likely from ${verdict.time_to_crash_s} s on`;
    return `A crash is expected within ${horizon}${p}${first}.`;
  }
  return `The model cannot tell${p}. Treat it as not safe.`;
}

/**
 * Return a rule's words; of a rule that this page does not know, the service's message must do.
 *
 * @param {string} rule
 */
export function wordsOf(rule) {
  return (
    RULES[rule] ?? {
      title: `Rule ${rule.replaceAll("_", " ")}.`,
      advice: "Treat the plan as not safe.",
    }
  );
}

/** @param {number} value from 0 to 1 */
export function percent(value) {
  if (value > 0 && value < 0.001) return "below 0.1\u00a0%";
  if (value < 1 && value > 0.999) return "above 99.9\u00a0%";
  return `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}\u00a0%`;
}

/**
 * Return the probability that the crash comes at each step, from that it has come until then.
 *
 * @param {(number | null)[]} cumulated
 */
export function byStep(cumulated) {
  return cumulated.map((p, k) => {
    const before = k ? cumulated[k - 1] : 0;
    return p === null || before === null ? null : p - before;
  });
}

/**
 * Return what the model is, in a line.
 *
 * @param {Model} model
 */
export function modelLine(model) {
  return `${model.name} · version ${model.version} · ${model.members} `
    + `${model.members === 1 ? "member" : "members"} · on ${model.device}`;
}
