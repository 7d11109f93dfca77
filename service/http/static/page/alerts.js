/**
 * Which alerts of `deploy/prometheus/rules/alerts.yml` would be firing, by what this page has seen of
 * one instance. A test compares names, limits, windows and times with that file.
 */

/** @import {Filter, History} from "./metrics.js" */

/** @type {Filter} */
const isSafety = ({ labels }) => labels.endpoint === "/safety-check";
/** @type {Filter} */
const isOther = (series) => !isSafety(series);

/**
 * @typedef {object} Alert
 * @property {string} name
 * @property {string} severity
 * @property {string} meaning of its firing
 * @property {number} for_s it must have been true for so long
 * @property {number} limit
 * @property {number} window_s 0: it looks at the last sample
 * @property {(history: History, alert: Alert) => boolean} isTrue
 */

/** @type {Alert[]} */
export const ALERTS = [
  {
    name: "WorldModelDown",
    severity: "critical",
    meaning: "the service does not answer",
    for_s: 60,
    limit: 0,
    window_s: 0,
    isTrue: (history) => history.samples.at(-1)?.values.size === 0,
  },
  {
    name: "WorldModelNotReady",
    severity: "critical",
    meaning: "it answers, but is not ready",
    for_s: 60,
    limit: 0,
    window_s: 0,
    isTrue: (history, { limit }) => history.last("world_model_ready") === limit,
  },
  {
    name: "WorldModelRestarts",
    severity: "warning",
    meaning: "more than 2 restarts in 15 minutes",
    for_s: 0,
    limit: 2,
    window_s: 900,
    isTrue: (history, { limit, window_s }) =>
      history.changes("process_start_time_seconds", window_s) > limit,
  },
  {
    name: "WorldModelSafetyChecksSlow",
    severity: "critical",
    meaning: "1 of 100 safety checks takes longer than 50 ms",
    for_s: 300,
    limit: 0.05,
    window_s: 300,
    isTrue: (history, { limit, window_s }) =>
      (history.quantile(0.99, "world_model_request_seconds", window_s, isSafety) ?? 0) > limit,
  },
  {
    name: "WorldModelSafetyChecksShed",
    severity: "critical",
    meaning: "more than 0.1 % of safety checks get 429 or 504",
    for_s: 60,
    limit: 0.001,
    window_s: 300,
    isTrue: (history, { limit, window_s }) => shedShare(history, window_s, isSafety) > limit,
  },
  {
    name: "WorldModelOverloaded",
    severity: "warning",
    meaning: "more than 1 % of other requests get 429 or 504",
    for_s: 300,
    limit: 0.01,
    window_s: 300,
    isTrue: (history, { limit, window_s }) =>
      ["/predict", "/rollout", "other"].some(
        (endpoint) =>
          shedShare(history, window_s, (x) => isOther(x) && x.labels.endpoint === endpoint) > limit,
      ),
  },
  {
    name: "WorldModelEngineErrors",
    severity: "warning",
    meaning: "the engine had faults in the last 10 minutes",
    for_s: 0,
    limit: 0,
    window_s: 600,
    isTrue: (history, { limit, window_s }) =>
      history.increase("world_model_engine_errors_total", window_s) > limit,
  },
  {
    name: "WorldModelVramHigh",
    severity: "warning",
    meaning: "more than 90 % of the GPU memory's budget is taken",
    for_s: 600,
    limit: 0.9,
    window_s: 0,
    isTrue: (history, { limit }) => {
      const of = (/** @type {string} */ kind) =>
        history.last("world_model_vram_bytes", ({ labels }) => labels.kind === kind);
      return (of("reserved") ?? 0) / (of("budget") || Infinity) > limit;
    },
  },
];

/** They compare with what was usual for a day: only Prometheus can tell. */
export const NEED_A_DAY = ["WorldModelVerdictsJumped", "WorldModelUncertaintyDrifted"];

/**
 * @param {History} history
 * @param {number} window_s
 * @param {Filter} filter
 */
function shedShare(history, window_s, filter) {
  const counted = (/** @type {Filter} */ outcome) =>
    history.increase("world_model_outcomes_total", window_s, (x) => filter(x) && outcome(x));
  const all = counted(({ labels }) => labels.outcome !== "impossible_deadline");
  return all && counted(({ labels }) => ["rejected", "late"].includes(labels.outcome)) / all;
}

/** Follows since when each alert's condition has been true. */
export class Watch {
  /** @param {number} gap_s after so long without a sample nothing is known of the time between */
  constructor(gap_s) {
    this.gap_s = gap_s;
    this.last_s = -Infinity;
    /** @type {Map<string, number>} */
    this.since = new Map();
  }

  /**
   * Return each alert's state after a sample was added.
   *
   * @param {History} history
   * @returns {{alert: Alert, state: "firing" | "pending" | "quiet"}[]}
   */
  states(history) {
    const now = history.samples.at(-1)?.time_s ?? 0;
    if (now - this.last_s > this.gap_s) this.since.clear();
    this.last_s = now;
    return ALERTS.map((alert) => {
      if (!alert.isTrue(history, alert)) {
        this.since.delete(alert.name);
        return { alert, state: "quiet" };
      }
      const since = this.since.get(alert.name) ?? now;
      this.since.set(alert.name, since);
      return { alert, state: now - since >= alert.for_s ? "firing" : "pending" };
    });
  }
}
