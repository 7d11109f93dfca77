/** What the service is asked about a scene and its plans, in the order in which it matters. */

import { safetyBody } from "./api.js";
import { BEST } from "./chosen.js";
import { randomPlans, riskOf } from "./fan.js";
import { membersFrom } from "./members.js";
import { endOf, hasPlaces } from "./panel.js";
import { fallbacks } from "./plan.js";

/** @import {Service} from "./api.js" */
/** @import {Chosen} from "./chosen.js" */
/** @import {Result} from "./panel.js" */
/** @import {Verdict} from "./types.js" */

/**
 * Ask about all that is chosen, one call after the other; leave as soon as something newer is.
 *
 * @param {Service} service
 * @param {Chosen} chosen receives plans that are found, and answers
 * @param {number | null} search which plan shall be the best fallback
 * @param {() => boolean} isLatest
 * @param {{onPlans: () => void, onAnswer: () => void}} events
 */
export async function askAll(service, chosen, search, isLatest, events) {
  const { model, layout, scene } = chosen;
  if (search !== null && layout) {
    const candidates = fallbacks(model, layout, scene);
    const { best } = await service.safetyCheck(safetyBody(model, scene.state, candidates));
    if (!isLatest()) return;
    chosen.plans[search] = { plan: candidates[best], preset: BEST };
    events.onPlans();
  }
  const plans = chosen.plans.map(({ plan }) => plan);
  const { verdicts, timing } = await service.safetyCheck(safetyBody(model, scene.state, plans));
  if (scene !== chosen.scene) return; // another one was chosen meanwhile
  /** @type {Result[]} */
  const results = verdicts.map((verdict, i) => ({
    plan: plans[i],
    verdict,
    timing,
    rewards: null,
    members: null,
  }));
  chosen.results = results;
  if (chosen.followsCrash) chosen.step = endOf(results[0], model, layout);
  events.onAnswer();

  // Rollouts of what is no number are refused, and the verdict has said so.
  if (!isLatest() || verdicts.some(isNotFinite)) return;
  const question = { state: scene.state, actions: plans, dt_s: model.dt_s };
  const { rewards } = await service.rollout({ ...question, outputs: ["rewards"] });
  results.forEach((result, i) => (result.rewards = rewards[i]));
  events.onAnswer();

  if (chosen.showsFan && !chosen.fan.length) {
    if (!isLatest()) return;
    await askFan(service, chosen);
    events.onAnswer();
  }
  if (chosen.hasMembers) {
    /** @type {number[][][][]} */
    const means = [];
    for (let members = 1; members < model.members; members++) {
      if (!isLatest()) return;
      means.push((await service.rollout({ ...question, outputs: ["states"], members })).states);
    }
    results.forEach((result, i) => {
      result.members = membersFrom([...means.map((states) => states[i]), result.verdict.trajectory]);
    });
    events.onAnswer();
  }
}

/**
 * @param {Service} service
 * @param {Chosen} chosen
 */
async function askFan(service, chosen) {
  const { model, scene } = chosen;
  const plans = randomPlans(model, chosen.presetOf("keep").plan);
  const { states, crash_probability } = await service.rollout({
    state: scene.state,
    actions: plans,
    outputs: ["states", "crash_probability"],
    dt_s: model.dt_s,
  });
  if (scene !== chosen.scene) return;
  const fan = plans.map((plan, i) => ({
    plan,
    states: states[i],
    risk: crash_probability[i],
    kind: riskOf(crash_probability[i], model.thresholds),
  }));
  chosen.fan = fan.filter((candidate) => Number.isFinite(candidate.risk) && hasPlaces(candidate.states));
}

/** @param {Verdict} verdict */
function isNotFinite({ reasons }) {
  return reasons.some(({ rule }) => rule === "not_finite");
}
