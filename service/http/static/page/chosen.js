/** What a person has chosen, and what was answered. */

import { layoutOf } from "./layout.js";
import { horizonOf, PRESETS, presetPlan } from "./plan.js";
import { exampleScene, firstShown, lastStart, sceneOf } from "./scenes.js";

/** @import {Abilities} from "./api.js" */
/** @import {Linked} from "./link.js" */
/** @import {Preset} from "./plan.js" */
/** @import {Candidate, Result} from "./panel.js" */
/** @import {Episode} from "./scenes.js" */
/** @import {Model, Plan, Scene} from "./types.js" */

export const EXAMPLE = "example";
export const PASTED = "pasted";
/** A preset that is a search. */
export const BEST = "best";

/** @typedef {{plan: Plan, preset: Preset | typeof BEST | null}} ChosenPlan */

export class Chosen {
  /**
   * @param {Model} model
   * @param {Episode[]} episodes that the model understands
   * @param {Abilities} abilities of the service
   */
  constructor(model, episodes, abilities) {
    this.model = model;
    this.episodes = episodes;
    this.needsKey = abilities.needsKey;
    this.hasMembers = abilities.hasMembers && model.members > 1;
    this.hasAttribution = abilities.hasAttribution;
    this.layout = layoutOf(model);
    this.horizon = horizonOf(model);
    this.showsRecorded = false;
    this.showsFan = false;
    this.showsWhy = false;
    /** Step that is shown, and whether it is that of the crash, as nobody chose another one. */
    this.step = this.horizon;
    this.followsCrash = true;
    /** @type {Scene | null} */
    this.pasted = null;
    /** @type {ChosenPlan[]} */
    this.plans = [];
    /** @type {Result[]} */
    this.results = [];
    /** @type {Candidate[]} */
    this.fan = [];
    this.source = EXAMPLE;
    this.start = 0;
    /** @type {Scene} */
    this.scene = exampleScene(model);
    this.takeSource(episodes[0]?.name ?? EXAMPLE);
  }

  /** The chosen episode, if the scene is of one. */
  get episode() {
    return this.episodes.find((episode) => episode.name === this.source);
  }

  /** @param {string} source name of an episode, or `EXAMPLE`, or `PASTED` */
  takeSource(source) {
    this.source = source;
    this.takeStart(this.episode ? firstShown(this.episode) : 0);
  }

  /** @param {number} start step of the episode */
  takeStart(start) {
    const { episode, pasted } = this;
    this.start = episode ? Math.min(start, lastStart(episode)) : 0;
    if (episode) this.scene = sceneOf(episode, this.start);
    else if (this.source === PASTED && pasted) this.scene = pasted;
    else [this.source, this.scene] = [EXAMPLE, exampleScene(this.model)];
    this.followsCrash = true;
    this.fan = [];
    this.results = [];
    // Each plan is what it was called, of this scene; one drawn by hand was meant for another.
    this.plans = (this.plans.length ? this.plans : [{ preset: null }]).map(({ preset }) =>
      this.presetOf(preset && preset !== BEST ? preset : "recorded"),
    );
  }

  /**
   * Return a preset, or if this scene has none such, that of keeping on.
   *
   * @param {Preset} preset
   * @returns {ChosenPlan}
   */
  presetOf(preset) {
    const plan = presetPlan(preset, this.model, this.layout, this.scene);
    if (plan) return { plan, preset };
    const keep = /** @type {Plan} */ (presetPlan("keep", this.model, this.layout, this.scene));
    return { plan: keep, preset: "keep" };
  }

  /** Whether something was answered about another plan than the one that is chosen. */
  get isStale() {
    return this.results.some(({ plan }, i) => plan !== this.plans[i]?.plan);
  }

  /** Drop what was answered about other plans than those that are chosen: it would pass for theirs. */
  dropStale() {
    if (this.isStale) this.results = [];
  }

  /** @returns {Linked} */
  toLink() {
    const { source, start, pasted, plans } = this;
    return {
      source,
      start,
      pasted: source === PASTED && pasted ? { state: pasted.state, actions: pasted.actions } : null,
      plans,
      step: this.followsCrash ? null : this.step,
      recorded: this.showsRecorded,
      fan: this.showsFan,
      why: this.showsWhy,
    };
  }

  /** @param {Linked} linked */
  takeLink(linked) {
    if (linked.pasted) this.pasted = { title: "from the link", ...linked.pasted, future: null };
    this.takeSource(linked.source);
    this.takeStart(linked.start);
    this.plans = linked.plans.map(({ plan, preset }) => ({
      plan,
      preset: preset === BEST || (preset && Object.hasOwn(PRESETS, preset)) ? /** @type {any} */ (preset) : null,
    }));
    this.followsCrash = linked.step === null;
    this.step = linked.step ?? this.horizon;
    this.showsRecorded = linked.recorded;
    this.showsFan = linked.fan;
    this.showsWhy = linked.why;
  }
}
