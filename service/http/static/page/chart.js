/** Small line charts over time, as SVG. */

import { svg } from "./dom.js";

const WIDTH = 320;
const HEIGHT = 130;
const LEFT = 46;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 26;

/**
 * @typedef {object} Line
 * @property {string} name shown in the legend and to screen readers
 * @property {(number | null)[]} values
 * @property {string} kind class of its stroke: colour and dashes
 *
 * @typedef {object} Chart
 * @property {string} title
 * @property {string} unit "" if it has none
 * @property {Line[]} lines
 * @property {number[]} times s, one a value
 * @property {{value: number, name: string}[]} [limits] drawn across
 * @property {boolean} [fromZero] whether the axis begins at 0
 * @property {number} [most] the axis never goes beyond, as nothing can
 * @property {number} [marked] s, drawn upright: the step that the view from above shows
 */

/**
 * Return a chart as a figure with a caption.
 *
 * @param {Chart} chart
 * @returns {HTMLElement}
 */
export function chartOf(chart) {
  const { low, high } = bounds(chart);
  const end = chart.times.at(-1) ?? 1;
  const begin = chart.times[0] ?? 0;
  const x = (/** @type {number} */ t) =>
    LEFT + ((t - begin) / (end - begin || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (/** @type {number} */ v) =>
    HEIGHT - BOTTOM - ((v - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const parts = [
    ...[low, (low + high) / 2, high].flatMap((v) => [
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v) }),
      svg("text", { class: "tick end", x: LEFT - 5, y: y(v) + 4 }, short(v)),
    ]),
    ...[begin, (begin + end) / 2, end].map((t, i) =>
      svg("text", { class: `tick ${["", "middle", "end"][i]}`, x: x(t), y: HEIGHT - 8 }, `${short(t)} s`),
    ),
  ];
  for (const { values, kind } of chart.lines) {
    const points = values.flatMap((v, i) => (v === null ? [] : [`${x(chart.times[i])},${y(v)}`]));
    parts.push(svg("polyline", { class: `line ${kind}`, points: points.join(" ") }));
  }
  for (const [i, { value, name }] of (chart.limits ?? []).entries()) {
    // At either end: two limits may lie close together.
    const place = i ? { class: "tick limit-name end", x: WIDTH - RIGHT - 4 } : { class: "tick limit-name", x: LEFT + 4 };
    parts.push(
      svg("line", { class: "limit", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { ...place, y: y(value) - 3 }, name),
    );
  }
  if (chart.marked !== undefined && chart.marked >= begin) {
    const at = x(chart.marked);
    parts.push(svg("line", { class: "now", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM }));
  }
  const image = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": inWords(chart) },
    ...parts,
  );
  const figure = document.createElement("figure");
  figure.className = "chart";
  const caption = document.createElement("figcaption");
  caption.append(chart.unit ? `${chart.title}, ${chart.unit}` : chart.title);
  const named = byName(chart.lines);
  if (named.length > 1) {
    for (const { name, kind } of named) {
      const sample = svg("svg", { viewBox: "0 0 20 6", class: "sample", "aria-hidden": "true" });
      sample.append(svg("polyline", { class: `line ${kind}`, points: "0,3 20,3" }));
      const entry = document.createElement("span");
      entry.append(sample, name);
      caption.append(" ", entry);
    }
  }
  figure.append(caption, image);
  return figure;
}

/**
 * Return the range of the vertical axis.
 *
 * @param {Chart} chart
 */
export function bounds(chart) {
  const values = [
    ...chart.lines.flatMap((line) => line.values),
    ...(chart.limits ?? []).map((limit) => limit.value),
  ].filter((v) => v !== null);
  let low = chart.fromZero ? 0 : Math.min(...values);
  let high = Math.max(...values);
  if (!values.length) [low, high] = [0, 1];
  // Of a value that stays, the line is in the middle, and no noise of rounding fills the chart.
  const least = Math.max(1e-3, Math.abs(high) * 0.02);
  if (high - low < least) high = low + least;
  const room = (high - low) * 0.05;
  return {
    low: chart.fromZero ? 0 : low - room,
    high: Math.min(high + room, chart.most ?? Infinity),
  };
}

/**
 * Return what a chart shows, for those who do not see it.
 *
 * @param {Chart} chart
 */
export function inWords(chart) {
  const unit = chart.unit && ` ${chart.unit}`;
  const lines = byName(chart.lines).map(({ name, values }) => {
    const known = /** @type {number[]} */ (values.filter((v) => v !== null));
    if (!known.length) return `${name}: no values`;
    const [first, last] = [known[0], known[known.length - 1]];
    return `${name} from ${short(first)}${unit} to ${short(last)}${unit}, most ${short(
      Math.max(...known),
    )}${unit}`;
  });
  const limits = (chart.limits ?? []).map(({ name, value }) => `${name} ${short(value)}${unit}`);
  return `${chart.title}: ${[...lines, ...limits].join("; ")}`;
}

/**
 * Return the first line of each name: members have one in common, and so have random plans.
 *
 * @param {Line[]} lines
 */
function byName(lines) {
  return lines.filter(({ name }, i) => lines.findIndex((line) => line.name === name) === i);
}

/**
 * Return a number in three digits.
 *
 * @param {number} value
 */
export function short(value) {
  if (value === 0 || Math.abs(value) < 1e-9) return "0";
  if (Math.abs(value) >= 1e5) return value.toExponential(1);
  const text = Math.abs(value) >= 1000 ? value.toFixed(0) : value.toPrecision(3);
  return text.includes("e") ? Number(text).toExponential(1) : String(Number(text));
}
