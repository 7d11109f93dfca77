/** Calls of the service. URLs are relative: the page may be served behind a prefix. */

/** @import {Attribution, Model, Plan, Verdict} from "./types.js" */

/** No call takes longer, whatever the service does. */
const LONGEST_MS = 30_000;

/** A call that failed. Its status is 0 if no answer came. */
export class ServiceError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {string[]} [details]
   * @param {number} [retryAfter_s]
   */
  constructor(status, message, details = [], retryAfter_s = 0) {
    super(message);
    this.status = status;
    this.details = details;
    this.retryAfter_s = retryAfter_s;
  }
}

/**
 * @typedef {object} Timing ms
 * @property {number} total as the browser saw it
 * @property {string} parts what the service says: its `Server-Timing`
 */

/**
 * @typedef {object} Abilities
 * @property {boolean} needsKey
 * @property {boolean} hasMembers whether the first members of the ensemble can be asked alone
 * @property {boolean} hasAttribution whether a safety check says what its crash probability comes from
 */

export class Service {
  constructor() {
    /** Kept in memory alone: it is gone when the page is. */
    this.key = "";
  }

  /**
   * @param {string} path
   * @param {"json" | "text"} kind of the answer
   * @param {object} [body] sent as JSON by POST; without one it is a GET
   * @param {{deadline_s?: number, signal?: AbortSignal}} [options] the service's own deadline; what ends the call
   * @returns {Promise<{content: any, headers: Headers}>}
   * @throws {ServiceError} for every failure, an answer that ends early or cannot be read included
   */
  async #fetch(path, kind, body, { deadline_s, signal } = {}) {
    /** @type {Record<string, string>} */
    const headers = body ? { "Content-Type": "application/json" } : {};
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    if (deadline_s) headers["X-Request-Timeout-Seconds"] = String(deadline_s);
    const ending = endingWith(signal);
    let response;
    try {
      response = await fetch(path, {
        method: body ? "POST" : "GET",
        headers,
        body: body && JSON.stringify(body),
        signal: ending,
      });
      if (response.ok) return { content: await response[kind](), headers: response.headers };
    } catch {
      throw new ServiceError(0, response ? "its answer cannot be read" : "nothing came back");
    }
    // A proxy may answer in its own words.
    const error = (await response.json().catch(() => null))?.error;
    const listed = Array.isArray(error?.details) ? error.details : [];
    const details = listed.map(
      (/** @type {{field: string, problem: string, allowed?: string}} */ x) =>
        `${x.field} ${x.problem}${x.allowed ? `; allowed: ${x.allowed}` : ""}`,
    );
    const wait = Number(response.headers.get("Retry-After") ?? 0);
    throw new ServiceError(response.status, error?.message ?? response.statusText, details, wait);
  }

  /**
   * What the service can do that older ones cannot, and whether it wants a key; by its documents.
   *
   * @returns {Promise<Abilities>}
   */
  async abilities() {
    const { components } = (await this.#fetch("openapi.json", "json")).content;
    const { RolloutRequest, SafetyCheckRequest } = components.schemas;
    return {
      needsKey: Boolean(components.securitySchemes),
      hasMembers: "members" in RolloutRequest.properties,
      hasAttribution: Boolean(SafetyCheckRequest.properties.include.items?.enum?.includes("attribution")),
    };
  }

  /** @returns {Promise<Model>} */
  async model() {
    return (await this.#fetch("model", "json")).content;
  }

  /** @returns {Promise<string>} Prometheus text */
  async metrics() {
    return (await this.#fetch("metrics", "text")).content;
  }

  /** @returns {Promise<any>} */
  async episodes() {
    return (await this.#fetch("page/episodes.json", "json")).content;
  }

  /**
   * @param {object} body
   * @returns {Promise<{verdicts: Verdict[], best: number, timing: Timing}>}
   */
  async safetyCheck(body) {
    const started = performance.now();
    const { content: answer, headers } = await this.#fetch("safety-check", "json", body);
    const timing = {
      total: performance.now() - started,
      parts: timingInWords(headers.get("Server-Timing") ?? ""),
    };
    return { verdicts: answer.candidates ?? [answer], best: answer.best ?? 0, timing };
  }

  /**
   * @param {object} body of a safety check that includes it
   * @param {number} deadline_s
   * @param {AbortSignal} signal ends the call, and with it the service's work
   * @returns {Promise<Attribution>}
   */
  async attribution(body, deadline_s, signal) {
    const { content } = await this.#fetch("safety-check", "json", body, { deadline_s, signal });
    // A proxy may answer with something else, and an older service leaves it out.
    if (!content?.attribution) throw new ServiceError(0, "its answer holds none");
    return content.attribution;
  }

  /**
   * @param {object} body
   * @returns {Promise<any>}
   */
  async rollout(body) {
    return (await this.#fetch("rollout", "json", body)).content;
  }
}

/**
 * Return what ends a call that takes too long, or whose caller wants no answer any more. Many browsers have no
 * `AbortSignal.any`.
 *
 * @param {AbortSignal} [signal] of the caller
 */
function endingWith(signal) {
  const ending = new AbortController();
  for (const cause of [AbortSignal.timeout(LONGEST_MS), ...(signal ? [signal] : [])]) {
    cause.addEventListener("abort", () => ending.abort());
    if (cause.aborted) ending.abort();
  }
  return ending.signal;
}

/**
 * Return a `Server-Timing` header in words: "queue 0.1 ms, compute 2.3 ms".
 *
 * @param {string} header
 */
export function timingInWords(header) {
  return [...header.matchAll(/(\w+);dur=([\d.]+)/g)]
    .map(([, name, duration]) => `${name} ${Number(duration).toFixed(1)} ms`)
    .join(", ");
}

/**
 * Return the body of a safety check of some plans.
 *
 * @param {Model} model
 * @param {number[]} state
 * @param {Plan[]} plans
 */
export function safetyBody(model, state, plans) {
  const actions = plans.length === 1 ? plans[0] : plans;
  const meant = model.frame ? { dt_s: model.dt_s, frame: model.frame } : { dt_s: model.dt_s };
  return { state, actions, include: ["trajectory"], ...meant };
}

/**
 * Return the body of a safety check that says what its crash probability comes from; it is of one plan.
 *
 * @param {Model} model
 * @param {number[]} state
 * @param {Plan} plan
 */
export function attributionBody(model, state, plan) {
  return { ...safetyBody(model, state, [plan]), include: ["attribution"] };
}
