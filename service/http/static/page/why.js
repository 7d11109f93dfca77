/**
 * Asking what a crash probability comes from: only when a plan has rested, after its verdict, one question
 * at a time. Whatever happens here, the verdict stays.
 */

import { attributionBody, ServiceError } from "./api.js";

/** @import {Service} from "./api.js" */
/** @import {Retry} from "./retry.js" */
/** @import {Attribution, Model, Plan, Verdict} from "./types.js" */

/** A hand that rests for so long has let go of the plan, at least for now. */
export const REST_MS = 400;

/** The service computes it while nothing else waits; 64 steps alone take some five seconds. */
export const DEADLINE_S = 25;

/** @typedef {{plan: Plan, verdict: Verdict}} Asked a plan, and what a safety check said about it */

export class Why {
  /**
   * @param {Service} service
   * @param {Retry} again its own: what is tried again here is not what is tried again elsewhere
   * @param {() => void} onChange
   */
  constructor(service, again, onChange) {
    this.service = service;
    this.again = again;
    this.onChange = onChange;
    /** What was answered, by plan: each scene has plans of its own. @type {Map<Plan, Attribution>} */
    this.found = new Map();
    /** Why there is none at present; "" while one is on its way, or nothing is asked. */
    this.problem = "";
    /** Set while plans rest. */
    this.timer = /** @type {ReturnType<typeof setTimeout> | undefined} */ (undefined);
    /** @type {AbortController | null} of the question that is on its way */
    this.asking = null;
  }

  /**
   * Ask about plans as soon as they have rested; of what was wanted before nothing more is asked.
   *
   * @param {Model} model
   * @param {number[]} state
   * @param {Asked[]} wanted
   */
  want(model, state, wanted) {
    this.leave();
    const plans = wanted.map(({ plan }) => plan);
    for (const plan of this.found.keys()) if (!plans.includes(plan)) this.found.delete(plan);
    const missing = wanted.filter(({ plan, verdict }) => !this.found.has(plan) && verdict.crash_probability !== null);
    if (missing.length) {
      this.timer = setTimeout(() => {
        this.timer = undefined;
        this.#ask(model, state, missing);
      }, REST_MS);
    }
  }

  /** Ask nothing more: whoever waits for this only costs the service. */
  leave() {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.again.stop();
    this.asking?.abort();
    this.asking = null;
    this.problem = "";
  }

  /**
   * Return what is known of a plan, and how things stand in words; "" if it is known.
   *
   * @param {Plan} plan
   * @param {Verdict} verdict
   * @returns {{attribution: Attribution | null, state: string}}
   */
  of(plan, verdict) {
    const attribution = this.found.get(plan) ?? null;
    if (attribution) return { attribution, state: "" };
    if (verdict.crash_probability === null) {
      return { attribution, state: "Why: not to be told, as the crash probability is no number." };
    }
    const isOnItsWay = this.timer !== undefined || this.asking !== null;
    const silence = isOnItsWay ? "Why: computing, while the service has nothing else to do…" : "Why: not asked yet.";
    return { attribution, state: this.problem || silence };
  }

  /**
   * @param {Model} model
   * @param {number[]} state
   * @param {Asked[]} missing
   */
  async #ask(model, state, missing) {
    const asking = new AbortController();
    this.asking = asking;
    this.#say("");
    try {
      for (const { plan } of missing) {
        const found = await this.service.attribution(attributionBody(model, state, plan), DEADLINE_S, asking.signal);
        if (asking.signal.aborted) return;
        this.found.set(plan, found);
        this.onChange();
      }
      this.again.stop();
    } catch (error) {
      if (asking.signal.aborted) return;
      if (!(error instanceof ServiceError)) throw error;
      const left = missing.filter(({ plan }) => !this.found.has(plan));
      this.#fail(error, () => this.#ask(model, state, left));
    } finally {
      if (this.asking === asking) this.asking = null;
    }
  }

  /**
   * @param {ServiceError} error
   * @param {() => void} retry
   */
  #fail(error, retry) {
    const what = {
      0: "no answer came",
      401: "the service wants a key",
      429: "the service has too much to do",
      503: "the service is not ready",
      504: "the service found no time for it",
    }[error.status] ?? `the service refused it (${[error.message, ...error.details].join("; ")})`;
    const passes = [0, 429, 503, 504].includes(error.status);
    const next = passes ? `Trying again in ${this.again.plan(retry, error.retryAfter_s)} s.` : "";
    this.#say(`Why: not to be had now: ${what}. The verdict holds without it. ${next}`.trim());
  }

  /** @param {string} problem */
  #say(problem) {
    this.problem = problem;
    this.onChange();
  }
}

/** What is said where the service has no attribution. */
export const LACKS_IT = "Why: this service does not tell what a crash probability comes from.";
