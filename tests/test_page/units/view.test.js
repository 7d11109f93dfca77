import assert from "node:assert/strict";
import { test } from "node:test";

import { BEST, Chosen, EXAMPLE, PASTED } from "../../../service/http/static/page/chosen.js";
import { inFan, randomPlans, riskOf } from "../../../service/http/static/page/fan.js";
import { layoutOf } from "../../../service/http/static/page/layout.js";
import { fragmentOf, viewIn } from "../../../service/http/static/page/link.js";
import { endOf, hasPlaces } from "../../../service/http/static/page/panel.js";
import { curlOf, pythonOf } from "../../../service/http/static/page/snippets.js";
import { roadModel, stateWith } from "./models.js";

const ABLE = { needsKey: false, hasMembers: true, hasAttribution: true };
const HORIZON = 16;

const episode = (name, outcome) => ({
  name,
  title: name,
  outcome,
  states: Array.from({ length: 31 }, (_, k) => stateWith({ dx: 40 - k })),
  actions: Array.from({ length: 30 }, () => [0, 0.5, 0]),
});

const chosenOf = (model = roadModel()) =>
  new Chosen(model, [episode("crash", "crash"), episode("calm", "none")], ABLE);

test("at first the first episode is chosen, as recorded, shortly before its end", () => {
  const chosen = chosenOf();
  assert.deepEqual([chosen.source, chosen.start, chosen.plans[0].preset], ["crash", 18, "recorded"]);
  assert.deepEqual(chosen.scene.state, stateWith({ dx: 22 }));
});

test("another scene keeps which preset a plan is, but no plan drawn by hand", () => {
  const chosen = chosenOf();
  chosen.plans = [chosen.presetOf("brake"), { plan: chosen.plans[0].plan, preset: null }];
  chosen.takeSource("calm");
  assert.deepEqual(chosen.plans.map(({ preset }) => preset), ["brake", "recorded"]);
  assert.deepEqual([chosen.start, chosen.fan], [0, []]);
});

test("a fallback that was found for one scene is not taken for another", () => {
  const chosen = chosenOf();
  chosen.plans = [{ plan: chosen.plans[0].plan, preset: BEST }];
  chosen.takeStart(20);
  assert.equal(chosen.plans[0].preset, "recorded");
});

test("a start beyond the end of a recording is its last one", () => {
  const chosen = chosenOf();
  chosen.takeStart(1000);
  assert.equal(chosen.start, 26);
});

test("a source that there is not is the model's example", () => {
  const chosen = chosenOf();
  chosen.takeSource("gone");
  assert.deepEqual([chosen.source, chosen.plans[0].preset], [EXAMPLE, "keep"]);
  chosen.takeSource(PASTED);
  assert.equal(chosen.source, EXAMPLE);
});

test("a link holds the whole view", () => {
  const model = roadModel();
  const chosen = chosenOf(model);
  chosen.pasted = { title: "ü", state: stateWith({ dy: 3 }), actions: null, future: null };
  chosen.takeSource(PASTED);
  chosen.plans = [chosen.presetOf("brake"), { plan: chosen.presetOf("left").plan, preset: null }];
  [chosen.step, chosen.followsCrash] = [3, false];
  [chosen.showsFan, chosen.showsRecorded, chosen.showsWhy] = [true, true, true];

  const fragment = fragmentOf(chosen.toLink());
  assert.match(fragment, /^#view=[\w-]+$/);
  const other = chosenOf(model);
  other.takeLink(viewIn(fragment, model, HORIZON));

  assert.deepEqual(other.toLink(), chosen.toLink());
  assert.deepEqual(other.scene.state, chosen.scene.state);
});

test("a link of a stranger is looked at", () => {
  const model = roadModel();
  const good = chosenOf(model).toLink();
  const { plan } = good.plans[0];
  const bad = [
    { ...good, plans: [] },
    { ...good, plans: [good.plans[0], good.plans[0], good.plans[0]] },
    { ...good, plans: [{ plan: plan.slice(1), preset: null }] },
    { ...good, plans: [{ plan: plan.map(() => [0, 0, 7]), preset: null }] },
    { ...good, plans: [{ plan: plan.map(() => ["0", 0, 0]), preset: null }] },
    { ...good, start: -1 },
    { ...good, step: 17 },
    { ...good, source: 3 },
    { ...good, pasted: { state: [1], actions: null } },
    [],
    null,
  ];
  for (const view of bad) {
    assert.throws(() => viewIn(fragmentOf(view), model, HORIZON), /damaged/, JSON.stringify(view));
  }
  assert.throws(() => viewIn("#view=%%%", model, HORIZON), /damaged/);
  for (const other of ["", "#", "#panels"]) assert.equal(viewIn(other, model, HORIZON), null);
  assert.deepEqual(viewIn(fragmentOf(good), model, HORIZON), good);
  assert.deepEqual(viewIn(fragmentOf({ ...good, more: 1 }), model, HORIZON), good);
  const { why, ...older } = good; // as pages without it made links
  assert.deepEqual(viewIn(fragmentOf(older), model, HORIZON), { ...good, why: false });
});

test("a name that all objects have is no preset of a link", () => {
  const chosen = chosenOf();
  const linked = chosen.toLink();
  chosen.takeLink({ ...linked, plans: [{ ...linked.plans[0], preset: "toString" }] });
  assert.equal(chosen.plans[0].preset, null);
});

test("answers are dropped with their scene, and after a failure if they are of other plans", () => {
  const chosen = chosenOf();
  const answer = () => (chosen.results = chosen.plans.map(({ plan }) => ({ plan })));
  answer();
  chosen.dropStale();
  assert.equal(chosen.results.length, 1);
  chosen.plans = [chosen.presetOf("brake")];
  chosen.dropStale();
  assert.deepEqual(chosen.results, []);
  answer();
  chosen.takeStart(20);
  assert.deepEqual(chosen.results, []);
  const linked = chosen.toLink();
  answer();
  chosen.takeLink(linked);
  assert.deepEqual(chosen.results, []);
});

test("only numbers are places", () => {
  assert.ok(hasPlaces([[0, -1.5]]));
  assert.ok(!hasPlaces([[0, 1], [null, 1]]));
  const verdict = { time_to_crash_s: null, trajectory: [stateWith({}), stateWith({}).map(() => null)] };
  assert.equal(endOf({ verdict, plan: [[0, 0, 0]] }, roadModel(), layoutOf(roadModel())), 1);
});

test("random plans are the same each time, different from each other, and allowed", () => {
  const model = roadModel();
  const around = chosenOf().presetOf("keep").plan;
  const plans = randomPlans(model, around);
  assert.deepEqual(plans, randomPlans(model, around));
  assert.equal(new Set(plans.map(String)).size, 64);
  for (const [i, { low, high }] of model.features.action.entries()) {
    const values = plans.flat().map((action) => action[i]);
    assert.ok(Math.min(...values) >= low && Math.max(...values) <= high);
    assert.ok(Math.max(...values) - Math.min(...values) > 0.4 * (high - low));
  }
  assert.equal(randomPlans({ ...model, max_rows: 5 }, around).length, 5);
});

test("risk is told apart by the model's threshold", () => {
  const [set, unset] = [{ crash_probability: 0.1, safe_below: 0.03 }, { crash_probability: null }];
  assert.deepEqual([0.02, 0.05, 0.1].map((p) => riskOf(p, set)), ["calm", "doubtful", "risky"]);
  assert.deepEqual([0.005, 0.4, 0.5].map((p) => riskOf(p, unset)), ["calm", "doubtful", "risky"]);
  const fan = [{ risk: 0.5, kind: "risky" }, { risk: 0.02, kind: "doubtful" }];
  assert.match(inFan(fan, set), /^2 .* 1 reach the threshold .* 2.0\s%.* below 3.0\s%/);
  assert.match(inFan(fan, unset), /1 reach 0.5, as no threshold is set .* below 1.0\s%/);
});

test("snippets never hold a key, and quote for the shell", () => {
  const body = { state: [1], frame: "it's" };
  assert.equal(
    curlOf("http://host/a/", body, false, 0),
    `curl -s 'http://host/a/safety-check' -d '{"state":[1],"frame":"it'\\''s"}'`,
  );
  assert.match(curlOf("http://h/", body, true, 0), /-H "Authorization: Bearer \$WORLD_MODEL_KEY"/);
  assert.match(pythonOf("http://host/a/", body, true, 0), /Client\("http:\/\/host\/a", api_key=os\.environ/);
  assert.match(curlOf("http://h/", body, false, 20), / -H "X-Request-Timeout-Seconds: 20" -d /);
  assert.match(pythonOf("http://h/", body, false, 20), /\n {8}frame="it's",\n {8}timeout_s=20,\n {4}\)/);
  assert.match(pythonOf("http://h/", body, false, 0), /^from world_model_client import Client\n/);
});
