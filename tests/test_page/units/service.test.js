import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { Service, ServiceError } from "../../../service/http/static/page/api.js";
import { latestWins } from "../../../service/http/static/page/latest.js";
import { askAll } from "../../../service/http/static/page/questions.js";
import { Retry } from "../../../service/http/static/page/retry.js";
import { stateWith, roadModel } from "./models.js";
import { Chosen } from "../../../service/http/static/page/chosen.js";

beforeEach(() => mock.timers.enable({ apis: ["setTimeout"] }));
afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

/** Answer every call so. */
const answering = (content, options) => {
  mock.method(globalThis, "fetch", async () => new Response(content, options));
};

for (const [name, content] of [["that is cut", '{"a": '], ["of a proxy", "<html>"], ["without content", ""]]) {
  test(`an answer ${name} is a failure of the service`, async () => {
    answering(content);
    const calls = [new Service().model(), new Service().safetyCheck({}), new Service().rollout({})];
    for (const call of calls) {
      await assert.rejects(call, (error) => error instanceof ServiceError && error.status === 0);
    }
  });
}

for (const content of ["null", '{"error": null}', '{"error": {"details": "x"}}', "gone"]) {
  test(`a refusal in other words is one still: ${content}`, async () => {
    answering(content, { status: 502, statusText: "Bad Gateway" });
    await assert.rejects(new Service().model(), { status: 502, message: "Bad Gateway", details: [] });
  });
}

test("an attribution is asked, and ended by its caller, in a browser without AbortSignal.any", async (t) => {
  const { any } = AbortSignal;
  t.after(() => (AbortSignal.any = any));
  AbortSignal.any = undefined;
  answering('{"attribution": {"baseline": "alone"}}');
  const ending = new AbortController();
  assert.deepEqual(await new Service().attribution({}, 25, ending.signal), { baseline: "alone" });

  mock.method(globalThis, "fetch", (path, { signal }) => new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason));
  }));
  const call = new Service().attribution({}, 25, ending.signal);
  ending.abort();
  await assert.rejects(call, { status: 0 });
});

test("what was answered is stale as soon as one of its plans is another", async () => {
  const { chosen } = await callsFor(null);
  assert.equal(chosen.isStale, false);
  chosen.plans[0] = { plan: [[0, 0, 0]], preset: null };
  assert.equal(chosen.isStale, true);
});

test("after a question that threw the next one is asked", async () => {
  const asked = [];
  const ask = latestWins(async (question) => {
    asked.push(question);
    if (question === 1) throw new Error("unexpected");
  });
  await assert.rejects(ask(1), /unexpected/);
  await ask(2);
  assert.deepEqual(asked, [1, 2]);
});

/** Ask about a scene; return which calls were made. */
async function callsFor(rule) {
  const chosen = new Chosen(roadModel(), [], { needsKey: false, hasMembers: true, hasAttribution: true });
  chosen.showsFan = true;
  const calls = [];
  const trajectory = Array(17).fill(rule ? [null] : stateWith({}));
  const verdict = { time_to_crash_s: null, trajectory, reasons: rule ? [{ rule, message: "" }] : [] };
  const service = {
    safetyCheck: async () => {
      calls.push("safety-check");
      return { verdicts: [verdict], best: 0, timing: { total: 1, parts: "" } };
    },
    rollout: async ({ actions }) => {
      calls.push("rollout");
      return {
        rewards: actions.map(() => [0]),
        states: actions.map((_, i) => Array(17).fill(i === 1 ? [null] : stateWith({}))),
        crash_probability: actions.map(() => 0),
      };
    },
  };
  await askAll(service, chosen, null, () => true, { onPlans: () => {}, onAnswer: () => {} });
  return { calls, chosen };
}

test("of what is no number no rollout is asked", async () => {
  const { calls, chosen } = await callsFor("not_finite");
  assert.deepEqual(calls, ["safety-check"]);
  assert.equal(chosen.results.length, 1);
});

test("a random plan that ends in no number is not drawn", async () => {
  const { calls, chosen } = await callsFor(null);
  assert.deepEqual(calls, ["safety-check", ...Array(4).fill("rollout")]);
  assert.equal(chosen.fan.length, 63);
});

/** A page that can be hidden. */
const pageThat = (hidden) => {
  const page = new EventTarget();
  page.hidden = hidden;
  return page;
};

test("waits grow up to a minute, are never shorter than asked for, and begin anew", () => {
  const again = new Retry(pageThat(false));
  const waits = (asked) => Array.from({ length: 7 }, () => again.plan(() => {}, asked));
  assert.deepEqual(waits(0), [3, 6, 12, 24, 48, 60, 60]);
  again.stop();
  assert.deepEqual(waits(100)[6], 100);
});

test("only what was planned last is done, once, and nothing after a stop", () => {
  const again = new Retry(pageThat(false));
  const done = [];
  again.plan(() => done.push(1), 0);
  again.plan(() => done.push(2), 0);
  mock.timers.tick(100_000);
  assert.deepEqual(done, [2]);
  again.plan(() => done.push(3), 0);
  again.stop();
  mock.timers.tick(100_000);
  assert.deepEqual(done, [2]);
});

test("a tab that nobody sees asks when it is seen again", () => {
  const page = pageThat(true);
  const again = new Retry(page);
  const done = [];
  again.plan(() => done.push(1), 0);
  mock.timers.tick(3000);
  page.dispatchEvent(new Event("visibilitychange"));
  assert.deepEqual(done, []);
  page.hidden = false;
  page.dispatchEvent(new Event("visibilitychange"));
  page.dispatchEvent(new Event("visibilitychange"));
  assert.deepEqual(done, [1]);
});
