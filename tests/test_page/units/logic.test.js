import assert from "node:assert/strict";
import { test } from "node:test";

import { safetyBody, timingInWords } from "../../../service/http/static/page/api.js";
import { bounds, inWords, short } from "../../../service/http/static/page/chart.js";
import { byStep, percent, summary, wordsOf } from "../../../service/http/static/page/explain.js";
import { latestWins } from "../../../service/http/static/page/latest.js";
import { layoutOf } from "../../../service/http/static/page/layout.js";
import { membersFrom } from "../../../service/http/static/page/members.js";
import { changed, fallbacks, horizonOf, presetPlan } from "../../../service/http/static/page/plan.js";
import {
  exampleScene,
  firstShown,
  lastStart,
  pastedScene,
  sceneOf,
  usable,
} from "../../../service/http/static/page/scenes.js";
import { roadModel, stateWith } from "./models.js";

const model = roadModel();
const layout = layoutOf(model);
const scene = { title: "", state: stateWith({ curvature: 0.01 }), actions: null, future: null };

test("of questions that come during one only the last is asked, one at a time", async () => {
  const asked = [];
  const gates = [];
  const ask = latestWins(async (question, isLatest) => {
    asked.push(question);
    await new Promise((open) => gates.push(open));
    asked.push(isLatest());
  });
  ask(1);
  ask(2);
  ask(3);
  assert.deepEqual(asked, [1]);
  gates.shift()();
  await new Promise(setImmediate);
  assert.deepEqual(asked, [1, false, 3]);
  gates.shift()();
  await new Promise(setImmediate);
  ask(4);
  assert.deepEqual(asked, [1, false, 3, true, 4]);
});

test("members follow from the means of the first 1, 2 and 3 of them", () => {
  const true_ = [1, 4, -2].map((x) => [[x, 10 * x]]);
  const means = true_.map((_, m) => [
    [0, 1].map((i) => true_.slice(0, m + 1).reduce((sum, x) => sum + x[0][i], 0) / (m + 1)),
  ]);
  assert.deepEqual(membersFrom(means), true_);
});

test("a plan is as long as was evaluated, if the service takes so many steps", () => {
  assert.equal(horizonOf(model), 16);
  assert.equal(horizonOf({ ...model, max_horizon: 8 }), 8);
});

test("presets follow the lane, brake and swerve to their side and back", () => {
  const of = (preset) => presetPlan(preset, model, layout, scene);
  const keep = of("keep");
  assert.ok(keep[0][0] > 0, "the road bends to the right");
  assert.deepEqual(of("brake").map((action) => action[2]), Array(16).fill(1));
  assert.ok(of("left")[0][0] < keep[0][0] && of("left")[15][0] > keep[0][0]);
  assert.ok(of("right")[0][0] > keep[0][0] && of("right")[15][0] < keep[0][0]);
  assert.equal(of("recorded"), null);
});

test("a recorded plan that ends early is held, and one that is longer is cut", () => {
  const actions = [[0, 0, 0], [0.5, 0, 0]];
  const plan = presetPlan("recorded", model, layout, { ...scene, actions });
  assert.deepEqual([plan.length, plan[0], plan[1], plan[15]], [16, actions[0], actions[1], actions[1]]);
});

test("fallbacks are plans that the service takes, full braking among them", () => {
  const plans = fallbacks(model, layout, scene);
  assert.ok(plans.some((plan) => plan.every((action) => action[2] === 1)));
  for (const [i, { low, high }] of model.features.action.entries()) {
    assert.ok(plans.flat().every((action) => action[i] >= low && action[i] <= high));
  }
  assert.equal(fallbacks({ ...model, max_rows: 3 }, layout, scene).length, 3);
});

test("a drag changes the steps that it passed, within the range, and no other plan", () => {
  const plan = [0, 0, 0, 0].map(() => [0, 0, 0]);
  const after = changed(plan, model.features.action, 0, 2, 1, 7);
  assert.deepEqual(after.map((action) => action[0]), [0, 1, 1, 0]);
  assert.deepEqual(plan[1], [0, 0, 0]);
});

const episode = {
  name: "e",
  title: "t",
  outcome: "crash",
  states: Array.from({ length: 21 }, (_, k) => [k]),
  actions: Array.from({ length: 20 }, (_, k) => [k]),
};

test("a scene of an episode begins at its step, and a crash is first shown 12 steps before", () => {
  assert.equal(firstShown(episode), 8);
  assert.equal(firstShown({ ...episode, outcome: "none" }), 0);
  assert.equal(lastStart(episode), 16);
  const cut = sceneOf(episode, 8);
  assert.deepEqual([cut.state, cut.actions[0], cut.future.length], [[8], [8], 13]);
});

test("episodes of other features are not offered", () => {
  const names = (features) => features.map(({ name }) => name);
  const bundled = {
    state_features: names(model.features.state),
    action_features: names(model.features.action),
    episodes: [episode],
  };
  assert.deepEqual(usable(bundled, model), [episode]);
  assert.deepEqual(usable({ ...bundled, state_features: ["x"] }, model), []);
});

test("a model without an example is shown where it was trained", () => {
  const trained = roadModel();
  trained.features.state[0] = { ...trained.features.state[0], trained_low: 4, trained_high: 8 };
  assert.equal(exampleScene(trained).state[0], 6);
});

test("a state or any request body can be pasted, and what is wrong is said", () => {
  const state = stateWith({});
  const action = [0, 0, 1];
  const read = (given) => pastedScene(JSON.stringify(given), model);
  assert.deepEqual(read(state).state, state);
  assert.deepEqual(read({ state, action }).actions, [action]);
  assert.deepEqual(read({ state: [state], actions: [[action]] }).actions, [action]);
  for (const wrong of ["{", "3", "null", JSON.stringify([1]), JSON.stringify({ state, actions: [[1]] })]) {
    assert.throws(() => pastedScene(wrong, model), /JSON|list of/);
  }
  assert.throws(() => pastedScene(`[1e999, ${state.slice(1)}]`, model), /list of/);
});

test("numbers that mean something else are refused", () => {
  const state = stateWith({});
  const read = (given) => pastedScene(JSON.stringify({ state, ...given }), model);
  assert.throws(() => read({ frame: "forward-left-up" }), /"frame" is "forward-left-up"; .*right-down/);
  assert.throws(() => read({ dt_s: 0.1 }), /"dt_s" is 0.1; that of this model is 0.05/);
  assert.throws(() => read({ dt_s: "fast" }), /"dt_s"/);
  assert.equal(read({ frame: model.frame, dt_s: 0.05, include: ["trajectory"] }).title, "pasted");
});

test("what of a body is not shown as it was given is said", () => {
  const state = stateWith({});
  const plan = (steps) => Array(steps).fill([0, 0, 0]);
  const title = (given) => pastedScene(JSON.stringify(given), model).title;
  assert.equal(title({ state, actions: plan(16) }), "pasted");
  assert.match(title({ state, actions: plan(20) }), /its first 16 of 20 actions/);
  assert.match(title({ state, action: [0, 0, 0] }), /its last action is held until step 16/);
  assert.match(title({ state, actions: [plan(16), plan(16)] }), /the first of 2 sequences/);
  assert.match(title({ state: [state, state] }), /the first of 2 states/);
  assert.match(title({ state, threshold: 0.2, members: 2 }), /left out: threshold, members/);
});

test("one plan is sent as such, several as a list, with what their numbers mean", () => {
  const plan = [[0, 0, 0]];
  assert.deepEqual(safetyBody(model, [1], [plan]), {
    state: [1],
    actions: plan,
    include: ["trajectory"],
    dt_s: 0.05,
    frame: "forward-right-down",
  });
  assert.deepEqual(safetyBody({ ...model, frame: null }, [1], [plan, plan]).actions, [plan, plan]);
});

test("the service's own times are read from its header", () => {
  assert.equal(timingInWords("queue;dur=0.123, compute;dur=4"), "queue 0.1 ms, compute 4.0 ms");
  assert.equal(timingInWords(""), "");
});

test("probabilities at each step add up to those until then", () => {
  assert.deepEqual(byStep([0.25, 0.5, 1]), [0.25, 0.25, 0.5]);
  assert.deepEqual(byStep([null, 0.5]), [null, null]);
});

test("a probability is never rounded to certainty", () => {
  assert.deepEqual([0, 1e-5, 0.0123, 0.5, 0.99999, 1].map(percent), [
    ...["0.0 %", "below 0.1 %", "1.2 %", "50 %", "above 99.9 %", "100 %"].map((text) => text.replace(" %", "\u00a0%")),
  ]);
});

test("an unknown verdict is not called safe, and a rule that is new has words", () => {
  const verdict = { verdict: "unknown", crash_probability: null, horizon_s: 0.8 };
  assert.match(summary(verdict), /not safe/);
  assert.match(wordsOf("quite_new").title, /quite new/);
});

test("a chart holds its limits, and noise of rounding does not fill it", () => {
  const chart = { title: "P", unit: "m", times: [0, 1], lines: [{ name: "p", values: [2, 2.001], kind: "" }] };
  const { low, high } = bounds(chart);
  assert.ok(high - low > 0.03);
  assert.ok(bounds({ ...chart, limits: [{ value: 5, name: "most" }] }).high > 5);
  assert.match(inWords({ ...chart, limits: [{ value: 5, name: "most" }] }), /p from 2 m to 2 m.*most 5 m/);
  assert.match(inWords({ ...chart, lines: [{ name: "p", values: [null], kind: "" }] }), /no values/);
});

test("numbers are short", () => {
  assert.deepEqual([0, 1e-12, 0.0842233, 12345, -125681, 2e-7, -1.5].map(short), [
    ...["0", "0", "0.0842", "12345", "-1.3e+5", "2.0e-7", "-1.5"],
  ]);
});
