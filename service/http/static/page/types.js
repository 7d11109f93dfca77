/**
 * Shapes of what the service answers and of what the modules pass on. Types alone: no browser loads
 * this file.
 *
 * @typedef {object} Feature
 * @property {string} name
 * @property {string} unit
 * @property {number} low least sensible value; of an action, the least that is taken
 * @property {number} high
 * @property {string} meaning
 * @property {number | null} [trained_low] of a state feature
 * @property {number | null} [trained_high]
 *
 * @typedef {object} Model answer of GET /model, as far as the page reads it
 * @property {string} name
 * @property {string} version
 * @property {string} device
 * @property {number} members
 * @property {number} dt_s
 * @property {string | null} frame
 * @property {{scene: string, state: number[], action: number[]} | null} example
 * @property {{feature: string, low: number | null, high: number | null}[]} saturations
 * @property {{kind: string, length_m: number[], width_m: number[]}[]} road_users
 * @property {number} max_horizon
 * @property {number} max_rows
 * @property {{state: Feature[], action: Feature[]}} features
 * @property {Thresholds} thresholds
 *
 * @typedef {object} Thresholds
 * @property {number | null} crash_probability
 * @property {number | null} [safe_below]
 * @property {number | null} uncertainty
 * @property {number | null} [expected_error_m]
 * @property {number} evaluated_horizon
 *
 * @typedef {object} Verdict one sequence's part of an answer of POST /safety-check
 * @property {"safe" | "unsafe" | "unknown"} verdict
 * @property {number | null} crash_probability
 * @property {(number | null)[]} crash_probability_by_step
 * @property {number | null} time_to_crash_s
 * @property {number | null} uncertainty
 * @property {number | null} [expected_error_m]
 * @property {number | null} threshold
 * @property {{rule: string, message: string}[]} reasons
 * @property {number} horizon_s
 * @property {number[][]} trajectory [H+1][S]
 *
 * @typedef {object} Attribution what a crash probability comes from; null stands for what is not finite
 * @property {string} baseline name of the scene that this one is compared with
 * @property {number | null} crash_probability
 * @property {number | null} baseline_crash_probability
 * @property {number | null} residual what the contributions lack of the difference
 * @property {{name: string, contribution: number | null, crash_probability_without: number | null}[]} groups the
 *   largest first
 * @property {StateShare[]} state [S]
 * @property {ActionShare[]} action [A]
 *
 * @typedef {object} StateShare
 * @property {string} name
 * @property {string} unit
 * @property {number | null} baseline
 * @property {number | null} contribution in probability
 * @property {number} spread
 * @property {{value: number | null, crash_probability: number | null}} lower
 * @property {{value: number | null, crash_probability: number | null}} higher
 *
 * @typedef {object} ActionShare
 * @property {string} name
 * @property {string} unit
 * @property {number} baseline
 * @property {number | null} contribution
 * @property {(number | null)[]} contribution_by_step [H]
 * @property {number} spread
 * @property {{crash_probability: number | null}} lower
 * @property {{crash_probability: number | null}} higher
 *
 * @typedef {number[][]} Plan actions [H][A]
 *
 * @typedef {object} Scene where a prediction starts
 * @property {string} title
 * @property {number[]} state [S]
 * @property {Plan | null} actions that came with it, if any did
 * @property {number[][] | null} future recorded states [T][S], the start first
 *
 * @typedef {{x: number, y: number}} Point m, in the ego's frame at the start: x ahead, y to the right
 * @typedef {{x: number, y: number, heading: number}} Pose heading in rad, clockwise
 * @typedef {Pose & {length: number, width: number}} Rectangle
 * @typedef {Rectangle & {slot: number, speed: number}} RoadUser slot counts from 1
 */

export {};
