import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { ServiceError } from "../../../service/http/static/page/api.js";
import { inWords } from "../../../service/http/static/page/birdseye.js";
import { placed } from "../../../service/http/static/page/labels.js";
import { layoutOf } from "../../../service/http/static/page/layout.js";
import { Retry } from "../../../service/http/static/page/retry.js";
import {
  inShort, kindOf, leastWritten, rowsOf, sceneShares, signed, stepsInWords, sumInWords,
} from "../../../service/http/static/page/shares.js";
import { REST_MS, Why } from "../../../service/http/static/page/why.js";
import { roadModel, stateWith } from "./models.js";

beforeEach(() => mock.timers.enable({ apis: ["setTimeout"] }));
afterEach(() => mock.timers.reset());

const plain = (text) => text.replaceAll("\u00a0", " ");
const NONE = { value: null, crash_probability: null };
const PLAN = [[0, 0, 0.5], [0, 0, 1]];

/** An attribution of the road model: of each feature in `shares` its share, of all others 0. */
function attributionOf(shares, more = {}) {
  const { state, action } = roadModel().features;
  const part = ({ name, unit }) => ({
    name, unit, baseline: 90, contribution: name in shares ? shares[name] : 0, spread: 10, lower: NONE, higher: NONE,
  });
  return {
    baseline: "alone",
    crash_probability: 0.9,
    baseline_crash_probability: 0.01,
    residual: 0.02,
    groups: [
      { name: "neighbour_1", contribution: 0.8, crash_probability_without: 0.05 },
      { name: "actions", contribution: 0.07, crash_probability_without: 0.5 },
      { name: "road", contribution: 0, crash_probability_without: 0.9 },
    ],
    state: state.map(part),
    action: action.map((feature) => ({ ...part(feature), contribution_by_step: [0.01, -0.03] })),
    ...more,
  };
}

test("shares have a sign, and none is ever more exact than what it says", () => {
  const shares = [0.952, 0.0995, 0.0234, 0.0004, -0.004, -0.5, null];
  assert.deepEqual(
    shares.map((x) => plain(signed(x))),
    ["+95 %", "+10 %", "+2.3 %", "±0 %", "−0.4 %", "−50 %", "no number"],
  );
  assert.deepEqual(shares.map(kindOf), ["adds", "adds", "adds", "none", "takes", "takes", "none"]);
});

test("features are listed by the size of their shares, with what it would be if they were otherwise", () => {
  const { features } = roadModel();
  const found = attributionOf({ neighbour_1_dx: 0.5, neighbour_1_dy: -0.6, brake: 0.07, speed: 0.0001, width: null });
  const dx = found.state.find(({ name }) => name === "neighbour_1_dx");
  dx.lower = { value: 10, crash_probability: 1 };
  dx.higher = { value: 30, crash_probability: 0.002 };
  found.action[2].higher = { crash_probability: 0.01 };

  const { rows, notable, without } = rowsOf(found, features, stateWith({ dx: 20 }), PLAN);

  assert.deepEqual(rows.map(({ name }) => name), ["neighbour_1_dy", "neighbour_1_dx", "brake", "speed"]);
  assert.deepEqual([notable, without], [3, features.state.length + 3 - 4]);
  assert.deepEqual(rows[1].changed.map(plain), ["if it were 10 m: 100 %", "if it were 30 m: 0.2 %"]);
  assert.deepEqual([rows[1].here, rows[1].baseline, rows[1].spread].map(plain), ["20 m", "90 m", "10 m"]);
  assert.equal(rows[1].meaning, "of road user 1: neighbour_1_dx");
  assert.equal(plain(rows[2].here), "0.5 m to 1 m");
  assert.deepEqual(rows[2].changed.map(plain), ["if it were 10 m more in all steps, within its range: 1.0 %"]);
});

test("what is drawn are the shares of road users, of the actions, and of each part of the road", () => {
  const groups = [
    { name: "neighbour_2", contribution: 0.3, crash_probability_without: null },
    { name: "neighbour_1", contribution: null, crash_probability_without: null },
    { name: "road", contribution: 0.6, crash_probability_without: 0.1 },
    { name: "actions", contribution: -0.001, crash_probability_without: 0.9 },
  ];
  const shares = sceneShares(attributionOf({ left_edge: 0.5, right_edge: -0.1 }, { groups }));
  assert.deepEqual([...shares.users], [[2, 0.3]]);
  assert.equal(shares.ego, -0.001);
  assert.deepEqual([shares.road.left, shares.road.right], [0.5, -0.1]);
  assert.ok(Math.abs(shares.road.lane - 0.2) < 1e-9);
  assert.equal(leastWritten(shares), 0.005);
  assert.ok(leastWritten(sceneShares(attributionOf({}, { groups: [] }))) > 0, "of no shares none is written");
});

test("the drawing says shares to those who do not see it", () => {
  const states = [stateWith({}), stateWith({})];
  const view = { layout: layoutOf(roadModel()), states, dt_s: 0.05, step: 0, crashStep: null };
  const shares = { users: new Map([[1, 0.8]]), ego: 0.1, road: { left: 0, right: 0, lane: 0 } };
  assert.match(inWords({ ...view, shares }), /road user 1, .*, share of the crash probability \+80\s%/);
  assert.doesNotMatch(inWords({ ...view, shares: null }), /share/);
});

test("all is said in plain words: who, compared with what, and what is left over", () => {
  const found = attributionOf({});
  assert.equal(
    plain(inShort(found)),
    "Why 90 %: road user 1 +80 %, the actions +7.0 %. All of it is listed below.",
  );
  assert.match(inShort({ ...found, groups: [] }), /nothing here adds/);
  const [baseline, sum] = sumInWords(found).map(plain);
  assert.match(baseline, /“alone”: everybody is as far away/);
  assert.match(sum, /is 1.0 %, here 90 %.* \+87 % in all.* \+2.0 % is left over/);
  assert.match(sumInWords({ ...found, baseline: "one_to_come" })[0], /“one to come”\.$/);
  assert.match(sumInWords({ ...found, residual: null })[1], /nothing adds up/);
  const action = { name: "brake", contribution: -0.02, contribution_by_step: [0.01, -0.03, null] };
  assert.equal(plain(stepsInWords(action)), "Share of brake: −2.0 % in all, most in step 2: −3.0 %");
});

test("a label takes its first free place, larger ones before smaller ones, and none leaves the drawing", () => {
  const size = { width: 200, height: 100 };
  const at = (text, ...places) => ({ text, places: places.map(([x, y]) => ({ x, y })) });
  const found = placed(
    [at("+50 %", [100, 50], [100, 80]), at("+40 %", [100, 80], [40, 20]), at("+30 %", [5, 50]), at("+20 %", [40, 25])],
    [{ text: "ego", x: 100, y: 52 }],
    size,
  );
  assert.deepEqual(found, [{ text: "+50 %", x: 100, y: 80 }, { text: "+40 %", x: 40, y: 20 }]);
});

/** A service that answers as it is told, one call after the other. */
function scripted(...answers) {
  const calls = [];
  const attribution = (body, deadline_s, signal) => {
    calls.push({ body, deadline_s, signal });
    const answer = answers.shift();
    return answer instanceof Error ? Promise.reject(answer) : Promise.resolve(answer);
  };
  return { service: { attribution }, calls };
}

const asked = (plan, crash_probability = 0.5) => ({ plan, verdict: { crash_probability } });
const settled = () => new Promise((resolve) => setImmediate(resolve));

function whyOf(service) {
  const page = new EventTarget();
  page.hidden = false;
  const seen = [];
  const why = new Why(service, new Retry(page), () => seen.push(why.of(PLAN, { crash_probability: 0.5 })));
  return { why, seen };
}

test("it is asked once a plan has rested, and only what was wanted last", async () => {
  const { service, calls } = scripted("a");
  const { why } = whyOf(service);
  const [model, state] = [roadModel(), stateWith({})];
  why.want(model, state, [asked([[1, 0, 0]])]);
  mock.timers.tick(REST_MS - 1);
  why.want(model, state, [asked(PLAN)]);
  mock.timers.tick(REST_MS - 1);
  assert.equal(calls.length, 0);
  mock.timers.tick(1);
  await settled();

  assert.deepEqual(calls.map(({ body }) => [body.actions, body.include]), [[PLAN, ["attribution"]]]);
  assert.ok(calls[0].deadline_s >= 10, "64 steps take some five seconds");
  assert.deepEqual(why.of(PLAN, asked(PLAN).verdict), { attribution: "a", state: "" });
  why.want(model, state, [asked(PLAN)]);
  mock.timers.tick(REST_MS);
  assert.equal(calls.length, 1, "what is known is not asked again");
});

test("of two plans each is asked about, one after the other; one without a number is not", async () => {
  const { service, calls } = scripted("a", "b");
  const { why } = whyOf(service);
  const other = [[1, 0, 0]];
  why.want(roadModel(), stateWith({}), [asked(PLAN), asked(other), asked([[0, 1, 0]], null)]);
  mock.timers.tick(REST_MS);
  assert.equal(calls.length, 1);
  await settled();
  assert.deepEqual(calls.map(({ body }) => body.actions), [PLAN, other]);
  assert.match(why.of([[0, 1, 0]], { crash_probability: null }).state, /no number/);
});

test("it is computing only while a plan rests or a question is on its way", async () => {
  const { service } = scripted("a");
  const { why } = whyOf(service);
  const said = () => why.of(PLAN, asked(PLAN).verdict).state;
  assert.equal(said(), "Why: not asked yet.");
  why.want(roadModel(), stateWith({}), [asked(PLAN)]);
  assert.match(said(), /computing/);
  mock.timers.tick(REST_MS);
  assert.match(said(), /computing/);
  why.leave();
  assert.equal(said(), "Why: not asked yet.");
  why.want(roadModel(), stateWith({}), [asked(PLAN)]);
  why.leave();
  assert.equal(said(), "Why: not asked yet.");
  await settled();
});

test("something newer ends the question that is on its way, and its answer is not taken", async () => {
  const { service, calls } = scripted("a");
  const { why } = whyOf(service);
  why.want(roadModel(), stateWith({}), [asked(PLAN)]);
  mock.timers.tick(REST_MS);
  why.leave();
  await settled();
  assert.ok(calls[0].signal.aborted);
  assert.equal(why.of(PLAN, asked(PLAN).verdict).attribution, null);
});

for (const [status, said, isAskedAgain] of [
  [0, "no answer came", true],
  [429, "too much to do", true],
  [503, "is not ready", true],
  [504, "no time for it", true],
  [422, "refused it (the reason; why)", false],
  [500, "refused it (the reason; why)", false],
]) {
  test(`after a ${status} it says so, and asks again if that may help`, async () => {
    const { service, calls } = scripted(new ServiceError(status, "the reason", ["why"], 7), "a");
    const { why, seen } = whyOf(service);
    why.want(roadModel(), stateWith({}), [asked(PLAN)]);
    mock.timers.tick(REST_MS);
    await settled();
    const { state } = seen.at(-1);
    assert.ok(state.includes(said) && state.includes("The verdict holds without it."), state);
    assert.equal(state.includes("Trying again in 7 s."), isAskedAgain);

    mock.timers.tick(7000);
    assert.equal(calls.length, isAskedAgain ? 2 : 1);
    if (isAskedAgain) assert.match(seen.at(-1).state, /computing/);
    await settled();
    assert.equal(seen.at(-1).attribution, isAskedAgain ? "a" : null);
  });
}
