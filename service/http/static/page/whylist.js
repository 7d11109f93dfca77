/** What a crash probability comes from, as a table of who and what and a list of features. */

import { html, one, svg } from "./dom.js";
import { percent } from "./explain.js";
import { CAUTION, groupName, kindOf, rowsOf, signed, sumInWords } from "./shares.js";

/** @import {Row} from "./shares.js" */
/** @import {Attribution, Model, Plan} from "./types.js" */

/** Features that are listed before somebody asks for all. */
const FIRST = 8;

export class WhyList {
  /** @param {HTMLElement} place hidden while there is nothing to show */
  constructor(place) {
    this.place = place;
    this.showsAll = false;
    this.first = FIRST;
    /** @type {{attribution: Attribution, state: number[]} | null} that is shown */
    this.shown = null;
    one(".more", place).addEventListener("click", () => {
      this.showsAll = !this.showsAll;
      this.#cut();
    });
  }

  /**
   * Show an attribution; without one, that of the plan before stays and says so, if it is of this scene.
   *
   * @param {Attribution | null} attribution
   * @param {Model} model
   * @param {number[]} state
   * @param {Plan} plan
   */
  show(attribution, model, state, plan) {
    if (!attribution && this.shown?.state !== state) this.clear();
    one(".old", this.place).hidden = attribution !== null;
    if (!attribution || attribution === this.shown?.attribution) return;
    this.shown = { attribution, state };
    this.place.hidden = false;
    const { rows, notable, without } = rowsOf(attribution, model.features, state, plan);
    one(".groups tbody", this.place).replaceChildren(...attribution.groups.map(groupRow));
    one(".sums", this.place).replaceChildren(
      ...[...sumInWords(attribution), CAUTION].map((sentence) => html("p", {}, sentence)),
    );
    one(".features", this.place).replaceChildren(...rows.map(featureEntry));
    this.first = Math.min(FIRST, notable);
    one(".without", this.place).textContent = [
      notable ? "" : "No feature has a share that is worth naming.",
      without ? `${without} have no share at all: they are as in the baseline, or nobody is there.` : "",
    ].join(" ").trim();
    this.#cut();
  }

  clear() {
    this.shown = null;
    this.place.hidden = true;
  }

  /** Hide all but the first, unless all are asked for. */
  #cut() {
    const entries = /** @type {HTMLElement[]} */ ([...one(".features", this.place).children]);
    entries.forEach((entry, i) => (entry.hidden = !this.showsAll && i >= this.first));
    const button = one(".more", this.place);
    button.hidden = entries.length <= this.first;
    button.setAttribute("aria-expanded", String(this.showsAll));
    button.textContent = this.showsAll ? "Show the largest only" : `Show all ${entries.length}`;
  }
}

/** @param {{name: string, contribution: number | null, crash_probability_without: number | null}} group */
function groupRow({ name, contribution, crash_probability_without: without }) {
  return html(
    "tr",
    {},
    html("th", { scope: "row" }, groupName(name)),
    html("td", {}, shareOf(contribution)),
    html("td", {}, without === null ? "no number" : percent(without)),
  );
}

/** @param {Row} row */
function featureEntry({ name, meaning, share, here, baseline, spread, changed }) {
  return html(
    "li",
    {},
    shareOf(share),
    html(
      "div",
      {},
      html("strong", {}, name),
      ` ${here} (baseline: ${baseline})`,
      html("div", { class: "detail" }, `${meaning}; spread ${spread}`),
      ...(changed.length ? [html("div", {}, sentence(changed.join("; ")))] : []),
    ),
  );
}

/** @param {string} text */
function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

/**
 * Return a share as a number beside a bar.
 *
 * @param {number | null} share
 */
function shareOf(share) {
  const kind = kindOf(share);
  const size = 100 * Math.min(1, Math.abs(share ?? 0));
  const bar = svg("svg", { viewBox: "0 0 100 8", class: `bar ${kind}`, "aria-hidden": "true", preserveAspectRatio: "none" });
  bar.append(svg("rect", { class: "whole", width: 100, height: 8 }), svg("rect", { width: size, height: 8 }));
  return html("span", { class: `share ${kind}` }, signed(share), /** @type {any} */ (bar));
}
