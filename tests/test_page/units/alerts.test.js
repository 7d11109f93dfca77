import assert from "node:assert/strict";
import { test } from "node:test";

import { ALERTS, Watch } from "../../../service/http/static/page/alerts.js";
import { ServiceError } from "../../../service/http/static/page/api.js";
import { noneIfDown } from "../../../service/http/static/page/live.js";
import { History, KEPT_S, read, seriesOf } from "../../../service/http/static/page/metrics.js";

const TEXT = `# HELP world_model_requests_total How many
# TYPE world_model_requests_total counter
world_model_requests_total{code="200",endpoint="/rollout"} 3.0
world_model_ready 1.0
world_model_requests_created{code="200",endpoint="/rollout"} 1.7e+09
python_info{version="3.11"} 1.0
process_start_time_seconds 1.79e+09
`;

/** A history of samples: [time in s, {series: value}]. */
function historyOf(...samples) {
  const history = new History();
  for (const [time_s, values] of samples) history.add({ time_s, values: new Map(Object.entries(values)) });
  return history;
}

const READY = { world_model_ready: 1 };

/** States of the alerts that are not quiet after samples, the last one's. */
function statesAfter(...samples) {
  const history = new History();
  const watch = new Watch(1000);
  let states = [];
  for (const [time_s, values] of samples) {
    history.add({ time_s, values: new Map(Object.entries(values)) });
    states = watch.states(history);
  }
  return Object.fromEntries(
    states.filter(({ state }) => state !== "quiet").map(({ alert, state }) => [alert.name, state]),
  );
}

test("the series that matter are read, and no others", () => {
  assert.deepEqual([...read(TEXT)], [
    ['world_model_requests_total{code="200",endpoint="/rollout"}', 3],
    ["world_model_ready", 1],
    ["process_start_time_seconds", 1.79e9],
  ]);
  assert.deepEqual(seriesOf('a{b="c",d="e\\"f"}'), { name: "a", labels: { b: "c", d: 'e\\"f' } });
});

test("a counter that begins anew has risen by what it shows since", () => {
  const total = (x) => ({ 'world_model_requests_total{endpoint="/a"}': x });
  const history = historyOf([0, total(5)], [10, total(8)], [20, total(2)], [30, {}], [40, total(4)]);
  assert.equal(history.increase("world_model_requests_total", 100), 5);
  assert.equal(history.increase("world_model_requests_total", 10, undefined, 1), 3);
  assert.equal(history.increase("world_model_requests_total", 100, () => false), 0);
});

test("what is older than the longest window is forgotten", () => {
  const history = historyOf([0, READY], [10, READY], [KEPT_S + 5, READY]);
  assert.deepEqual(history.samples.map(({ time_s }) => time_s), [10, KEPT_S + 5]);
  assert.equal(history.seen_s(Infinity), KEPT_S - 5);
});

const buckets = (endpoint, a, b, c) => ({
  [`world_model_request_seconds_bucket{endpoint="${endpoint}",le="0.01"}`]: a,
  [`world_model_request_seconds_bucket{endpoint="${endpoint}",le="0.1"}`]: b,
  [`world_model_request_seconds_bucket{endpoint="${endpoint}",le="+Inf"}`]: c,
});

test("quantiles lie evenly within a bucket, and beyond the last one at its bound", () => {
  const history = historyOf([0, buckets("/a", 0, 0, 0)], [10, buckets("/a", 50, 90, 100)]);
  const of = (q) => history.quantile(q, "world_model_request_seconds", 60);
  assert.ok(Math.abs(of(0.25) - 0.005) < 1e-12);
  assert.ok(Math.abs(of(0.7) - 0.055) < 1e-12);
  assert.equal(of(0.99), 0.1);
  assert.equal(historyOf([0, READY]).quantile(0.5, "world_model_request_seconds", 60), null);
});

test("a quiet service has no alert", () => {
  assert.deepEqual(statesAfter([0, READY], [600, READY]), {});
});

test("down and not ready fire after a minute, not at once, and end at once", () => {
  assert.deepEqual(statesAfter([0, READY], [5, {}]), { WorldModelDown: "pending" });
  assert.deepEqual(statesAfter([0, {}], [60, {}]), { WorldModelDown: "firing" });
  assert.deepEqual(statesAfter([0, {}], [60, {}], [65, READY]), {});
  const not = { world_model_ready: 0 };
  assert.deepEqual(statesAfter([0, not], [65, not]), { WorldModelNotReady: "firing" });
});

test("after a gap nobody knows how long an alert has been true", () => {
  const watch = new Watch(15);
  const state = (time_s) => watch.states(historyOf([time_s, {}]))[0].state;
  assert.deepEqual([0, 15, 30, 45, 60].map(state), [...Array(4).fill("pending"), "firing"]);
  assert.equal(state(76), "pending");
});

test("only who does not answer or has a fault is down: a refusal tells nothing", () => {
  for (const status of [0, 500, 503]) assert.equal(noneIfDown(new ServiceError(status, "")).size, 0);
  for (const status of [401, 429]) assert.throws(() => noneIfDown(new ServiceError(status, "")));
});

test("three restarts fire, and an outage is none", () => {
  const start = (x) => ({ ...READY, process_start_time_seconds: x });
  const all = [[0, start(1)], [10, start(2)], [15, READY], [20, start(2)], [30, start(3)]];
  assert.deepEqual(statesAfter(...all), {});
  assert.deepEqual(statesAfter(...all, [40, start(4)]), { WorldModelRestarts: "firing" });
});

test("slow safety checks fire by their own latency alone", () => {
  const slow = (endpoint) => [[0, buckets(endpoint, 0, 0, 0)], [300, buckets(endpoint, 1, 100, 100)], [600, buckets(endpoint, 2, 200, 200)]];
  assert.deepEqual(statesAfter(...slow("/safety-check")), { WorldModelSafetyChecksSlow: "firing" });
  assert.deepEqual(statesAfter(...slow("/rollout")), {});
  assert.deepEqual(statesAfter(...slow("attribution")), {}, "it takes seconds by design");
});

test("shed requests fire by endpoint, and impossible deadlines do not count", () => {
  const shed = (endpoint, outcome, count) => [0, 1, 2, 3].map((i) => [
    150 * i,
    {
      [`world_model_outcomes_total{endpoint="${endpoint}",outcome="ok"}`]: 1000 * i,
      [`world_model_outcomes_total{endpoint="${endpoint}",outcome="${outcome}"}`]: count * i,
    },
  ]);
  assert.deepEqual(statesAfter(...shed("/safety-check", "rejected", 2)), { WorldModelSafetyChecksShed: "firing" });
  assert.deepEqual(statesAfter(...shed("/rollout", "late", 2)), {});
  assert.deepEqual(statesAfter(...shed("/rollout", "late", 20)), { WorldModelOverloaded: "firing" });
  assert.deepEqual(statesAfter(...shed("/rollout", "impossible_deadline", 500)), {});
  assert.deepEqual(statesAfter(...shed("attribution", "rejected", 500)), {});
});

test("an engine error and a full GPU fire", () => {
  const errors = (x) => ({ 'world_model_engine_errors_total{kind="a"}': x });
  assert.deepEqual(statesAfter([0, errors(0)], [5, errors(1)]), { WorldModelEngineErrors: "firing" });
  assert.deepEqual(statesAfter([0, errors(7)], [5, errors(7)]), {});
  const vram = (x) => ({
    'world_model_vram_bytes{kind="reserved"}': x,
    'world_model_vram_bytes{kind="budget"}': 100,
  });
  assert.deepEqual(statesAfter([0, vram(91)], [600, vram(91)]), { WorldModelVramHigh: "firing" });
  assert.deepEqual(statesAfter([0, vram(89)], [600, vram(89)]), {});
  assert.equal(ALERTS.length, 8);
});
