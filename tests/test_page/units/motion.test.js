import assert from "node:assert/strict";
import { test } from "node:test";

import { hullOf, pairOf } from "../../../service/http/static/page/birdseye.js";
import { layoutOf } from "../../../service/http/static/page/layout.js";
import {
  corners,
  egoPoses,
  firstContact,
  nearest,
  roadLines,
  separation,
  steerAlong,
  usersAt,
} from "../../../service/http/static/page/motion.js";
import { roadModel, stateWith } from "./models.js";

const layout = layoutOf(roadModel());
const HERE = { x: 0, y: 0, heading: 0 };

const near = (found, wanted, tolerance = 1e-9) =>
  assert.ok(Math.abs(found - wanted) <= tolerance, `${found} is not ${wanted}`);

test("a model of other features, or in another frame, has no layout", () => {
  const other = roadModel();
  other.features.state[0].name = "pressure";
  assert.equal(layoutOf(other), null);
  assert.equal(layoutOf({ ...roadModel(), frame: "forward-left-up" }), null);
});

test("without sizes in the state all are cars of 5 x 2 m, and a presence says who is there", () => {
  const model = roadModel();
  model.features.state = model.features.state
    .filter(({ name }) => !/length|width/.test(name))
    .concat({ ...model.features.state[0], name: "neighbour_1_presence" });
  const small = layoutOf(model);
  const state = [10, 0, 0, 4, 4, 0, 20, 1, 0, 5, 1];
  assert.deepEqual(usersAt(small, state, HERE).map((x) => [x.length, x.width]), [[5, 2]]);
  assert.deepEqual(usersAt(small, [...state.slice(0, -1), 0], HERE), []);
});

test("steering to the right leads to positive y, and straight on to none", () => {
  const states = Array.from({ length: 5 }, () => stateWith({}));
  const right = egoPoses(layout, states, [[0.5, 0, 0]], 0.05).at(-1);
  const straight = egoPoses(layout, states, [[0, 0, 0]], 0.05).at(-1);
  assert.ok(right.y > 0 && right.heading > 0);
  assert.deepEqual(straight, { x: 2, y: 0, heading: 0 });
});

test("the steer along a curvature follows a circle of that curvature", () => {
  const steer = steerAlong(0.02, 10, 4);
  const poses = egoPoses(layout, Array(41).fill(stateWith({})), [[steer, 0, 0]], 0.05);
  near(poses.at(-1).heading, 0.02 * 10 * 0.05 * 40, 1e-9);
});

test("who is around is placed in the frame of the start", () => {
  const turned = { x: 10, y: 5, heading: Math.PI / 2 };
  const [user] = usersAt(layout, stateWith({ dx: 3, dy: 1 }), turned);
  near(user.x, 9);
  near(user.y, 8);
  assert.equal(user.slot, 1);
  assert.deepEqual(usersAt(layout, stateWith({ there: false }), HERE), []);
});

test("corners begin at the front left and go clockwise", () => {
  const at = corners({ ...HERE, length: 4, width: 2 }).map(({ x, y }) => [x, y]);
  assert.deepEqual(at, [[2, -1], [2, 1], [-2, 1], [-2, -1]]);
});

test("rectangles are apart by their gap, and overlap by their depth", () => {
  const ego = { ...HERE, length: 4, width: 2 };
  near(separation(ego, { ...ego, x: 7 }), 3);
  near(separation(ego, { ...ego, x: 3.5 }), -0.5);
  // Turned by 45 degrees its corner would touch only if it were seen as its bounding box.
  const turned = { ...ego, x: 2.9, y: 1.9, heading: -Math.PI / 4, length: 2, width: 2 };
  assert.ok(separation(ego, turned) > 0);
});

test("the first contact names the step and who it is", () => {
  const states = [20, 5, 3.95, 3.85].map((dx) => stateWith({ dx }));
  assert.deepEqual(
    [firstContact(layout, states).step, firstContact(layout, states).slot],
    [3, 1],
    "an overlap of 0.1 m is none",
  );
  assert.equal(firstContact(layout, states.slice(0, 3)), null);
});

test("who is there and how large is what the start says", () => {
  const grown = stateWith({ dx: 5 });
  grown[6] = 8;
  assert.equal(firstContact(layout, [stateWith({ dx: 20 }), grown]), null);
  assert.equal(firstContact(layout, [stateWith({ there: false }), stateWith({ dx: 3 })]), null);
  assert.equal(firstContact(layout, [stateWith({ dx: 20 }), stateWith({ dx: 3 })]).step, 1);
});

test("an ego without length keeps its heading, and no number is lost", () => {
  const none = stateWith({ curvature: 0.1 });
  none[6] = 0;
  assert.equal(steerAlong(0.1, 10, 0), 0);
  const poses = egoPoses(layout, [none, none], [[0.5, 0, 0]], 0.05);
  assert.deepEqual(poses.at(-1), { x: 0.5, y: 0, heading: 0 });
});

test("a tight bend is drawn for a quarter of a circle", () => {
  const [{ points }] = roadLines(layout, stateWith({ curvature: 0.1 }), -50, 50);
  near(points[0].x, -10, 1e-6);
  near(points[40].x, 10, 1e-6);
  near(points[40].y, 10, 1e-6);
});

test("leaving the road is a contact with its edge", () => {
  const found = firstContact(layout, [stateWith({}), stateWith({ left: -0.2 })]);
  assert.deepEqual([found.name, found.slot, found.step], ["left road edge", null, 1]);
});

test("without a contact the crash is with who is nearest at that step", () => {
  const states = [20, 6, 4.5].map((dx) => stateWith({ dx }));
  const pair = pairOf({ layout, states, crashStep: 2 });
  assert.deepEqual([pair.step, pair.slot, pair.isContact], [2, 1, false]);
  assert.equal(pairOf({ layout, states, crashStep: null }), null);
});

test("an edge out of sight is neither near nor drawn", () => {
  const state = stateWith({ left: 16, there: false });
  assert.equal(nearest(layout, state).name, "right road edge");
  assert.deepEqual(roadLines(layout, state, 0, 10).map(({ name }) => name), ["lane", "right"]);
});

test("a road that bends to the right does so in the drawing", () => {
  const lines = roadLines(layout, stateWith({ curvature: 0.01 }), -10, 50);
  for (const { points } of lines) {
    const [a, b, c] = [points[0], points[20], points[40]];
    assert.ok((b.x - a.x) * (c.y - a.y) - (b.y - a.y) * (c.x - a.x) > 0);
  }
});

test("a hull holds the outermost points in order", () => {
  const square = [[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.5]].map(([x, y]) => ({ x, y }));
  assert.equal(hullOf(square).length, 4);
});
