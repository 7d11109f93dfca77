/** Curves of actions over the horizon, drawn by dragging, or by keys. */

import { html, svg } from "./dom.js";
import { changed } from "./plan.js";
import { short } from "./chart.js";
import { stepsInWords } from "./shares.js";

/** @import {ActionShare, Feature, Plan} from "./types.js" */

const WIDTH = 320;
const HEIGHT = 64;
const SHARES_HEIGHT = 28;
/** Shares of a step are drawn as if one were at least so large: else noise would fill the place. */
const LEAST_SCALE = 0.001;
const KEYS = "Arrow left and right choose the step, up and down change it; with Shift all steps.";

export class Editor {
  /**
   * @param {HTMLElement} place
   * @param {Feature[]} features of an action
   * @param {(plan: Plan) => void} onChange
   */
  constructor(place, features, onChange) {
    this.features = features;
    this.onChange = onChange;
    /** @type {Plan} */
    this.plan = [];
    this.step = features.map(() => 0);
    this.curves = features.map((feature, column) => this.#curve(feature, column));
    place.replaceChildren(...this.curves.map(({ figure }) => figure), html("p", { class: "hint" }, KEYS));
  }

  /** @param {Plan} plan */
  show(plan) {
    this.plan = plan;
    this.curves.forEach((_, column) => this.#draw(column));
  }

  /**
   * Show beneath each curve what its steps do to the crash probability.
   *
   * @param {ActionShare[] | null} actions [A]; null: they are not known, but their place is kept
   */
  showShares(actions) {
    // One scale for all: which action matters shows at once.
    const most = Math.max(LEAST_SCALE, ...(actions ?? []).flatMap((x) => x.contribution_by_step.map((c) => Math.abs(c ?? 0))));
    this.curves.forEach(({ shares }, column) => {
      const of = actions?.[column];
      const image = svg("svg", {
        viewBox: `0 0 ${WIDTH} ${SHARES_HEIGHT}`,
        class: "steps",
        preserveAspectRatio: "none",
        "aria-hidden": "true",
      });
      const middle = SHARES_HEIGHT / 2;
      image.append(svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: middle, y2: middle }));
      const steps = of?.contribution_by_step ?? [];
      image.append(...steps.map((share, k) => {
        const height = (Math.abs(share ?? 0) / most) * middle;
        return svg("rect", {
          class: (share ?? 0) < 0 ? "takes" : "adds",
          x: ((k + 0.1) / steps.length) * WIDTH,
          width: (0.8 / steps.length) * WIDTH,
          y: (share ?? 0) < 0 ? middle : middle - height,
          height,
        });
      }));
      const words = of ? stepsInWords(of) : "Share: not known yet";
      shares.replaceChildren(/** @type {any} */ (image), html("p", { class: "hint" }, words));
      shares.hidden = false;
    });
  }

  hideShares() {
    for (const { shares } of this.curves) shares.hidden = true;
  }

  /**
   * @param {Feature} feature
   * @param {number} column
   */
  #curve(feature, column) {
    const image = svg("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      class: "curve",
      preserveAspectRatio: "none",
      tabindex: 0,
      role: "slider",
      "aria-label": `${feature.name}: ${feature.meaning}`,
      "aria-valuemin": feature.low,
      "aria-valuemax": feature.high,
    });
    const value = html("output", { "aria-live": "off" });
    const caption = html("figcaption", { title: feature.meaning }, `${feature.name} · `, value);
    const shares = html("div", { hidden: "" });
    const figure = html("figure", {}, caption, /** @type {any} */ (image), shares);
    let last = 0;
    // Where it was when the drag began: an answer may move what stands above.
    let box = new DOMRect();
    const drag = (/** @type {PointerEvent} */ event, /** @type {boolean} */ begins) => {
      if (begins) box = image.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      const step = Math.max(0, Math.min(this.plan.length - 1, Math.floor(share * this.plan.length)));
      const up = 1 - (event.clientY - box.top) / box.height;
      const to = feature.low + Math.max(0, Math.min(1, up)) * (feature.high - feature.low);
      this.#change(column, begins ? step : last, step, to);
      last = step;
    };
    image.addEventListener("pointerdown", (event) => {
      image.setPointerCapture(event.pointerId);
      drag(event, true);
    });
    image.addEventListener("pointermove", (event) => {
      if (image.hasPointerCapture(event.pointerId)) drag(event, false);
    });
    image.addEventListener("keydown", (event) => this.#key(event, column));
    return { figure, image, value, shares };
  }

  /**
   * @param {KeyboardEvent} event
   * @param {number} column
   */
  #key(event, column) {
    const { low, high } = this.features[column];
    const way = { ArrowUp: 1, ArrowDown: -1, PageUp: 5, PageDown: -5 }[event.key];
    const last = this.plan.length - 1;
    const step = this.step[column];
    if (way) {
      const value = this.plan[step][column] + (way * (high - low)) / 40;
      const [from, to] = event.shiftKey ? [0, last] : [step, step];
      this.#change(column, from, to, Number(value.toFixed(3)), step);
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      const next = step + (event.key === "ArrowLeft" ? -1 : 1);
      this.step[column] = Math.max(0, Math.min(last, next));
      this.#draw(column);
    } else {
      return;
    }
    event.preventDefault();
  }

  /**
   * @param {number} column
   * @param {number} from
   * @param {number} to
   * @param {number} value
   * @param {number} [chosen] step that stays chosen for keys
   */
  #change(column, from, to, value, chosen = to) {
    this.step[column] = chosen;
    this.plan = changed(this.plan, this.features, column, from, to, value);
    this.#draw(column);
    this.onChange(this.plan);
  }

  /** @param {number} column */
  #draw(column) {
    const { low, high } = this.features[column];
    const { image, value } = this.curves[column];
    const count = this.plan.length;
    const y = (/** @type {number} */ v) => HEIGHT - 2 - ((v - low) / (high - low)) * (HEIGHT - 4);
    const values = this.plan.map((action) => action[column]);
    const points = values.flatMap((v, k) => [
      `${(k / count) * WIDTH},${y(v)}`,
      `${((k + 1) / count) * WIDTH},${y(v)}`,
    ]);
    const step = Math.min(this.step[column], count - 1);
    const zero = y(Math.max(low, Math.min(high, 0)));
    image.replaceChildren(
      svg("rect", {
        class: "chosen",
        x: (step / count) * WIDTH,
        y: 0,
        width: WIDTH / count,
        height: HEIGHT,
      }),
      svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: zero, y2: zero }),
      svg("polyline", { class: "line action", points: points.join(" ") }),
    );
    image.setAttribute("aria-valuenow", String(values[step]));
    const text = `step ${step + 1} of ${count}: ${short(values[step])}`;
    image.setAttribute("aria-valuetext", text);
    value.replaceChildren(text);
  }
}
