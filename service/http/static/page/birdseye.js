/**
 * The scene from above, as SVG: ahead is to the right, so the ego's right side is below. That is the
 * frame of the state (x ahead, y to the right) as it stands: no sign is turned.
 */

import { svg } from "./dom.js";
import { placed } from "./labels.js";
import { corners, egoAt, egoPoses, firstContact, nearest, roadLines, usersAt } from "./motion.js";
import { kindOf, leastWritten, signed } from "./shares.js";

/** @import {Label} from "./labels.js" */
/** @import {Layout} from "./layout.js" */
/** @import {Candidate} from "./panel.js" */
/** @import {SceneShares} from "./shares.js" */
/** @import {Plan, Point, Rectangle, RoadUser} from "./types.js" */

/**
 * @typedef {object} View
 * @property {Layout} layout
 * @property {number[][]} states predicted, [H+1][S]
 * @property {Plan} plan
 * @property {number} dt_s
 * @property {number} step shown; the paths show all
 * @property {number | null} crashStep after which the crash probability has reached the threshold
 * @property {number[][][] | null} members each member's states [E][H+1][S], if the service tells
 * @property {{states: number[][], actions: Plan} | null} recorded future
 * @property {Candidate[]} fan random plans that are drawn beneath
 * @property {SceneShares | null} shares of the crash probability, if they are shown
 * @property {number} width px; the height follows from it alone, so that nothing moves while a plan
 *   is dragged
 */

/** Who is farther away is cut off: less on narrow screens, where all would become small. */
const FARTHEST_M = 70;
const LEAST_SCALE = 8;
const MARGIN_M = 3;
/** Width of the glow around what has a share, px: of the smallest, and how much more of the largest. */
const GLOW = { least: 2, more: 22 };

/**
 * Return the drawing.
 *
 * @param {View} view
 * @returns {SVGElement}
 */
export function drawn(view) {
  const { layout, states, dt_s, step } = view;
  const poses = egoPoses(layout, states, view.plan, dt_s);
  const at = (/** @type {number} */ k) => ({
    ego: egoAt(layout, states[0], poses[k]),
    users: usersAt(layout, states[k], poses[k], states[0]),
  });
  const scene = states.map((_, k) => at(k));
  const height = Math.round(Math.max(180, Math.min(340, view.width * 0.42)));
  const box = boxAround(view, scene, height / view.width);
  const scale = view.width / (box.right - box.left);
  const px = (/** @type {Point} */ p) =>
    `${((p.x - box.left) * scale).toFixed(1)},${((p.y - box.top) * scale).toFixed(1)}`;
  const path = (/** @type {string} */ kind, /** @type {Point[]} */ points) =>
    svg("polyline", { class: kind, points: points.map(px).join(" ") });
  const area = (/** @type {string} */ kind, /** @type {Point[]} */ points) =>
    svg("polygon", { class: kind, points: points.map(px).join(" ") });
  const lines = roadLines(layout, states[0], box.left - 10, box.right + 10);
  const road = lines.map((line) => path(`road ${line.name}`, line.points));
  const fan = view.fan.map((candidate) =>
    path(
      `fan ${candidate.kind}`,
      egoPoses(layout, candidate.states, candidate.plan, dt_s),
    ),
  );
  const bands = bandsOf(view).map((hull) => area("band", hull));
  const paths = [path("path ego", poses)];
  for (const { slot } of scene[0].users) {
    const places = scene.flatMap(({ users }) => users.filter((user) => user.slot === slot));
    paths.push(path("path other", places));
  }
  const recorded = recordedShapes(view).map((shape) => area("recorded", shape));
  const now = scene[step];
  const pair = pairOf(view);
  const touching = (/** @type {number | null} */ slot) =>
    pair !== null && pair.step <= step && pair.slot === slot ? " touching" : "";
  const bodies = [
    ...now.users.map((user) => area(`body other${touching(user.slot)}`, corners(user))),
    area(`body ego${pair && pair.step <= step ? " touching" : ""}`, corners(now.ego)),
    path("nose", corners(now.ego).slice(0, 2)),
  ];
  const named = (/** @type {Point} */ p, /** @type {string} */ text) => {
    const [x, y] = px(p).split(",").map(Number);
    return { x, y, text };
  };
  const { shares } = view;
  const isWritten = shares !== null && Math.abs(shares.ego ?? 0) >= leastWritten(shares);
  const own = isWritten ? ` ${signed(shares.ego)}` : "";
  const known = [
    named({ x: now.ego.x, y: now.ego.y + now.ego.width / 2 + 12 / scale }, `ego${own}`),
    ...now.users.map((user) => named(user, String(user.slot))),
  ];
  const toPlace = shares ? sharesToPlace(shares, now.users, lines, px) : [];
  const names = [...known, ...placed(toPlace, known, { width: view.width, height })].map(({ x, y, text }) =>
    svg("text", { class: "name", x, y, dy: "0.35em" }, text),
  );
  const glows = shares ? [
    ...lines.flatMap(({ name, points }) => glowOf("polyline", points.map(px), shares.road[name])),
    ...now.users.flatMap((user) => glowOf("polygon", corners(user).map(px), shares.users.get(user.slot) ?? null)),
    ...glowOf("polygon", corners(now.ego).map(px), shares.ego),
  ] : [];
  const marks = pair ? [markOf(scene[pair.step], pair, px)] : [];
  return svg(
    "svg",
    {
      class: "birdseye",
      viewBox: `0 0 ${view.width} ${height}`,
      role: "img",
      "aria-label": inWords(view),
    },
    ...glows,
    ...road,
    ...fan,
    ...bands,
    ...paths,
    ...recorded,
    ...bodies,
    ...marks,
    ...names,
    scaleBar(view.width, height, scale),
  );
}

/**
 * Return a glow around something, as wide as its share is large; none if it has none.
 *
 * @param {"polygon" | "polyline"} shape
 * @param {string[]} points px
 * @param {number | null} share
 */
function glowOf(shape, points, share) {
  const kind = kindOf(share);
  if (kind === "none") return [];
  const width = GLOW.least + GLOW.more * Math.min(1, Math.abs(share ?? 0));
  return [svg(shape, { class: `glow ${kind}`, points: points.join(" "), "stroke-width": width.toFixed(1) })];
}

/**
 * Return the shares of others and of the road as labels, the largest first.
 *
 * @param {SceneShares} shares
 * @param {RoadUser[]} users
 * @param {{name: "left" | "right" | "lane", points: Point[]}[]} lines of the road
 * @param {(p: Point) => string} px
 * @returns {Label[]}
 */
function sharesToPlace(shares, users, lines, px) {
  const at = (/** @type {Point} */ p) => px(p).split(",").map(Number);
  const least = leastWritten(shares);
  const ofUsers = users.map((user) => {
    const ys = corners(user).map((corner) => at(corner)[1]);
    const [x] = at(user);
    const places = [Math.min(...ys) - 11, Math.max(...ys) + 11].map((y) => ({ x, y }));
    return { name: "", share: shares.users.get(user.slot) ?? null, places };
  });
  const ofLines = lines.map(({ name, points }) => ({
    name: name === "lane" ? "lane " : `${name} edge `,
    share: shares.road[name],
    // From its end on: that of the other end is far from where the ego is.
    places: points.map(at).map(([x, y]) => ({ x, y: y - 11 })),
  }));
  return [...ofUsers, ...ofLines]
    .filter(({ share }) => Math.abs(share ?? 0) >= least)
    .sort((a, b) => Math.abs(b.share ?? 0) - Math.abs(a.share ?? 0))
    .map(({ name, share, places }) => ({ text: name + signed(share), places }));
}

/**
 * @typedef {object} Pair
 * @property {number} step
 * @property {number | null} slot null: the road's edge
 * @property {string} name
 * @property {boolean} isContact whether the predicted rectangles touch; else it is merely nearest
 */

/**
 * Return when and with whom the crash is: the first contact of predicted places, or else what is
 * nearest to the ego at the step at which the probability reaches the threshold.
 *
 * @param {Pick<View, "layout" | "states" | "crashStep">} view
 * @returns {Pair | null}
 */
export function pairOf({ layout, states, crashStep }) {
  const contact = firstContact(layout, states);
  if (contact) return { ...contact, isContact: true };
  if (crashStep === null) return null;
  const closest = nearest(layout, states[crashStep], states[0]);
  return closest && { ...closest, step: crashStep, isContact: false };
}

/**
 * Return the scene at the shown step, and the crash, for those who do not see the drawing.
 *
 * @param {Pick<View, "layout" | "states" | "dt_s" | "step" | "crashStep" | "shares">} view
 */
export function inWords(view) {
  const { layout, states, dt_s, step } = view;
  const state = states[step];
  const users = usersAt(layout, state, { x: 0, y: 0, heading: 0 }, states[0]).map((user) => {
    const ahead = `${Math.abs(user.x).toFixed(1)} m ${user.x < 0 ? "behind" : "ahead"}`;
    const aside = `${Math.abs(user.y).toFixed(1)} m to the ${user.y < 0 ? "left" : "right"}`;
    const share = view.shares?.users.get(user.slot);
    const part = share === undefined ? "" : `, share of the crash probability ${signed(share)}`;
    return `road user ${user.slot}, ${user.length.toFixed(1)} m long, ${ahead}, ${aside}${part}`;
  });
  const pair = pairOf(view);
  return [
    `After ${(step * dt_s).toFixed(2)} s: ego at ${state[layout.speed].toFixed(1)} m/s`,
    ...users,
    ...(pair ? [crashInWords(pair, dt_s)] : []),
  ].join("; ");
}

/**
 * @param {Pair} pair
 * @param {number} dt_s
 */
export function crashInWords(pair, dt_s) {
  const when = `after ${(pair.step * dt_s).toFixed(2)} s`;
  if (pair.isContact && pair.slot === null) return `the ego goes beyond the ${pair.name} ${when}`;
  return pair.isContact
    ? `the ego touches ${pair.name} ${when}`
    : `crash expected ${when}; ${pair.name} is nearest to the ego then`;
}

/**
 * @param {{ego: Rectangle, users: (Rectangle & {slot: number})[]}} then
 * @param {Pair} pair
 * @param {(p: Point) => string} px
 */
function markOf(then, pair, px) {
  const other = then.users.find((user) => user.slot === pair.slot);
  const place = other
    ? { x: (then.ego.x + other.x) / 2, y: (then.ego.y + other.y) / 2 }
    : { x: then.ego.x, y: then.ego.y };
  const [x, y] = px(place).split(",").map(Number);
  const size = 7;
  return svg("path", {
    class: "crash",
    d: `M${x - size},${y - size}L${x + size},${y + size}M${x - size},${y + size}L${x + size},${y - size}`,
  });
}

/**
 * Return an area for each step and road user that holds the places of all members.
 *
 * @param {View} view
 * @returns {Point[][]}
 */
function bandsOf({ layout, members, plan, dt_s }) {
  if (!members) return [];
  /** @type {Map<number, Point[][]>} */
  const places = new Map();
  for (const states of members) {
    const poses = egoPoses(layout, states, plan, dt_s);
    states.forEach((state, k) => {
      for (const user of [{ slot: 0, ...poses[k] }, ...usersAt(layout, state, poses[k])]) {
        const steps = places.get(user.slot) ?? states.map(() => []);
        steps[k].push(user);
        places.set(user.slot, steps);
      }
    });
  }
  return [...places.values()].flatMap((steps) =>
    steps.slice(1).map((points, k) => hullOf([...steps[k], ...points])),
  );
}

/**
 * Return the convex hull of points (Andrew's monotone chain).
 *
 * @param {Point[]} points
 * @returns {Point[]}
 */
export function hullOf(points) {
  const sorted = [...points].sort((a, b) => a.x - b.x || a.y - b.y);
  const half = (/** @type {Point[]} */ ordered) => {
    /** @type {Point[]} */
    const chain = [];
    for (const p of ordered) {
      while (chain.length > 1 && cross(chain[chain.length - 2], chain[chain.length - 1], p) <= 0) {
        chain.pop();
      }
      chain.push(p);
    }
    return chain.slice(0, -1);
  };
  return [...half(sorted), ...half(sorted.reverse())];
}

/**
 * @param {Point} a
 * @param {Point} b
 * @param {Point} c
 */
function cross(a, b, c) {
  return (b.x - a.x) * (c.y - a.y) - (b.y - a.y) * (c.x - a.x);
}

/**
 * @param {View} view
 * @returns {Point[][]}
 */
function recordedShapes({ layout, recorded, dt_s, step }) {
  if (!recorded || step >= recorded.states.length) return [];
  const pose = egoPoses(layout, recorded.states, recorded.actions, dt_s)[step];
  const state = recorded.states[step];
  return [egoAt(layout, state, pose), ...usersAt(layout, state, pose)].map(corners);
}

/**
 * Return what part of the world is drawn: the ego's path and all road users that are not far.
 *
 * @param {View} view
 * @param {{ego: Rectangle, users: Rectangle[]}[]} scene
 * @param {number} shape height of the drawing by its width
 */
function boxAround(view, scene, shape) {
  const farthest = Math.min(FARTHEST_M, view.width / LEAST_SCALE);
  const shapes = scene.flatMap(({ ego, users }) => [
    ego,
    ...users.filter((user) => Math.hypot(user.x - ego.x, user.y - ego.y) < farthest),
  ]);
  const points = shapes.flatMap(corners);
  const state = view.states[0];
  for (const [column, sign] of [
    [view.layout.leftEdge, -1],
    [view.layout.rightEdge, 1],
  ]) {
    if (state[column] < view.layout.edgeLimit_m) points.push({ x: 0, y: sign * state[column] });
  }
  const [xs, ys] = [points.map((p) => p.x), points.map((p) => p.y)];
  const wide = Math.max(...xs) - Math.min(...xs) + 2 * MARGIN_M;
  const high = Math.max(...ys) - Math.min(...ys) + 2 * MARGIN_M;
  const width = Math.max(wide, high / shape);
  const [x, y] = [(Math.max(...xs) + Math.min(...xs)) / 2, (Math.max(...ys) + Math.min(...ys)) / 2];
  return { left: x - width / 2, right: x + width / 2, top: y - (width * shape) / 2 };
}

/**
 * @param {number} width px
 * @param {number} height px
 * @param {number} scale px/m
 */
function scaleBar(width, height, scale) {
  const metres = [1, 2, 5, 10, 20, 50].find((m) => m * scale > 60) ?? 100;
  const [right, y] = [width - 10, height - 10];
  return svg(
    "g",
    { class: "scale" },
    svg("line", { x1: right - metres * scale, x2: right, y1: y, y2: y }),
    svg("text", { x: right, y: y - 5, class: "end" }, `${metres} m · driving direction →`),
  );
}
