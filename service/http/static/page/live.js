/** How the service is doing: the last minutes of `/metrics`, asked only while somebody looks. */

import { ALERTS, NEED_A_DAY, Watch } from "./alerts.js";
import { chartOf } from "./chart.js";
import { html, one } from "./dom.js";
import { History, read } from "./metrics.js";

/** @import {Service, ServiceError} from "./api.js" */
/** @import {Filter} from "./metrics.js" */

const EVERY_MS = 5000;
/** Latencies are of so long a time: of a few requests there would be no quantile. */
const WINDOW_S = 30;
const SHOWN = 121;

/** @type {Filter} */
const isPrediction = ({ labels }) =>
  ["/predict", "/rollout", "/safety-check"].includes(labels.endpoint);

/**
 * Return no values if the service is down; a refusal, as of a key, does not say how it is doing.
 *
 * @param {ServiceError} error
 * @returns {Map<string, number>}
 */
export function noneIfDown(error) {
  if (error.status === 0 || error.status >= 500) return new Map();
  throw error;
}

/**
 * @param {string} name of an alert
 * @param {string} why
 */
function unknownRow(name, why) {
  return html(
    "tr",
    {},
    html("th", { scope: "row" }, name),
    html("td", {}, "? not known here"),
    html("td", {}, why),
  );
}

export class Live {
  /**
   * @param {Service} service
   * @param {HTMLDetailsElement} place
   */
  constructor(service, place) {
    this.service = service;
    this.place = place;
    this.history = new History();
    this.watch = new Watch((3 * EVERY_MS) / 1000);
    this.isAsking = false;
    place.addEventListener("toggle", () => this.#ask());
    window.setInterval(() => this.#ask(), EVERY_MS);
  }

  async #ask() {
    if (!this.place.open || document.hidden || this.isAsking) return;
    this.isAsking = true;
    try {
      const values = await this.service.metrics().then(read, noneIfDown);
      this.history.add({ time_s: performance.now() / 1000, values });
      this.#show();
    } catch (error) {
      this.#showUnknown(String(/** @type {Error} */ (error).message));
    } finally {
      this.isAsking = false;
    }
  }

  /** @param {string} why */
  #showUnknown(why) {
    const names = [...ALERTS.map(({ name }) => name), ...NEED_A_DAY];
    one(".alerts", this.place).replaceChildren(...names.map((name) => unknownRow(name, why)));
    one(".live-charts", this.place).replaceChildren();
    one(".live-facts", this.place).textContent = `Not known: ${why}`;
  }

  #show() {
    const { history } = this;
    one(".alerts", this.place).replaceChildren(...this.watch.states(history).map(({ alert, state }) =>
      html(
        "tr",
        { class: state },
        html("th", { scope: "row" }, alert.name),
        html("td", {}, { firing: "✕ firing", pending: "… pending", quiet: "✓ quiet" }[state]),
        html("td", {}, `${alert.severity}: ${alert.meaning}${alert.for_s ? `, for ${alert.for_s / 60} min` : ""}`),
      ),
    ), ...NEED_A_DAY.map((name) => unknownRow(name, "needs a day of history: ask Prometheus")));
    one(".live-charts", this.place).replaceChildren(...this.#charts());
    one(".live-facts", this.place).textContent = this.#facts();
  }

  #charts() {
    const { history } = this;
    const count = history.samples.length;
    const shown = Array.from({ length: Math.min(count, SHOWN) }, (_, i) => i + count - Math.min(count, SHOWN));
    const now = history.samples[count - 1].time_s;
    const times = shown.map((i) => Math.round(history.samples[i].time_s - now));
    const rate = (/** @type {string} */ name, /** @type {Filter} */ filter) =>
      shown.map((i) => {
        const seen = history.seen_s(2 * EVERY_MS / 1000, i);
        return seen ? history.increase(name, 2 * EVERY_MS / 1000, filter, i) / seen : null;
      });
    const ms = (/** @type {number} */ q) =>
      shown.map((i) => {
        const value = history.quantile(q, "world_model_request_seconds", WINDOW_S, isPrediction, i);
        return value === null ? null : 1000 * value;
      });
    const rows = shown.map((i) => {
      const launches = history.increase("world_model_batch_rows_count", WINDOW_S, undefined, i);
      return launches ? history.increase("world_model_batch_rows_sum", WINDOW_S, undefined, i) / launches : null;
    });
    const verdicts = (/** @type {string} */ verdict) =>
      rate("world_model_safety_verdicts_total", ({ labels }) => labels.verdict === verdict);
    return [
      chartOf({
        title: "Predictions asked for",
        unit: "1/s",
        times,
        fromZero: true,
        lines: [{ name: "requests", values: rate("world_model_requests_total", isPrediction), kind: "first" }],
      }),
      chartOf({
        title: "Time inside the service",
        unit: "ms",
        times,
        fromZero: true,
        lines: [
          { name: "half are quicker", values: ms(0.5), kind: "first" },
          { name: "99 of 100 are quicker", values: ms(0.99), kind: "second" },
        ],
      }),
      chartOf({
        title: "Rows of a launch",
        unit: "",
        times,
        fromZero: true,
        lines: [{ name: "rows, on average", values: rows, kind: "first" }],
      }),
      chartOf({
        title: "Verdicts",
        unit: "1/s",
        times,
        fromZero: true,
        lines: [
          { name: "safe", values: verdicts("safe"), kind: "first" },
          { name: "unsafe", values: verdicts("unsafe"), kind: "second" },
          { name: "unknown", values: verdicts("unknown"), kind: "third" },
        ],
      }),
    ];
  }

  #facts() {
    const { history } = this;
    const mib = (/** @type {number | null} */ bytes) =>
      bytes === null ? null : `${(bytes / 2 ** 20).toFixed(0)} MiB`;
    const vram = (/** @type {string} */ kind) =>
      mib(history.last("world_model_vram_bytes", ({ labels }) => labels.kind === kind));
    const info = [...history.series.values()].find(({ name }) => name === "world_model_info");
    const used = vram("reserved");
    return [
      info && `Device: ${info.labels.device}`,
      `memory of the process: ${mib(history.last("world_model_process_resident_bytes")) ?? "not known"}`,
      used ? `GPU memory: ${used} of a budget of ${vram("budget")}` : "no GPU memory",
      `seen for ${history.seen_s(Infinity).toFixed(0)} s; this page's own questions are counted, too`,
    ].filter(Boolean).join("; ");
  }
}
