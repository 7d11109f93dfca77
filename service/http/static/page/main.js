/** The page: controls, panels and what goes wrong, joined. */

import { attributionBody, safetyBody, Service, ServiceError } from "./api.js";
import { BEST, Chosen, EXAMPLE, PASTED } from "./chosen.js";
import { html, one } from "./dom.js";
import { modelLine } from "./explain.js";
import { inFan } from "./fan.js";
import { latestWins } from "./latest.js";
import { fragmentOf, viewIn } from "./link.js";
import { Live } from "./live.js";
import { Panel } from "./panel.js";
import { askAll } from "./questions.js";
import { Retry } from "./retry.js";
import { lastStart, pastedScene, usable } from "./scenes.js";
import { curlOf, pythonOf } from "./snippets.js";
import { DEADLINE_S, LACKS_IT, Why } from "./why.js";

/** @import {Result} from "./panel.js" */

/** @typedef {HTMLInputElement} Input */

/** Playing is slower than the world: 0.8 s would be over before anybody has looked. */
const PLAY_MS = 200;

const service = new Service();
/** @type {Chosen} */
let chosen;
/** @type {Panel[]} */
let panels = [];
const again = new Retry(document);
const why = new Why(service, new Retry(document), () => render());

async function load() {
  try {
    const abilities = await service.abilities();
    if (abilities.needsKey && !service.key) {
      askForKey("");
      return;
    }
    const [model, bundled] = await Promise.all([service.model(), service.episodes()]);
    chosen = new Chosen(model, usable(bundled, model), abilities);
    solve();
    takeFragment();
    showModel();
    showScene();
    update();
  } catch (error) {
    fail(error, load);
  }
}

/**
 * Take the view that the link holds.
 *
 * @returns {boolean} whether it holds one
 */
function takeFragment() {
  const problem = one("#link-problem");
  try {
    const linked = viewIn(location.hash, chosen.model, chosen.horizon);
    if (!linked) return false;
    chosen.takeLink(linked);
    problem.hidden = true;
    return true;
  } catch (error) {
    problem.hidden = false;
    problem.textContent = String(/** @type {Error} */ (error).message);
    return false;
  }
}

function showModel() {
  const { model } = chosen;
  one("#model").textContent = modelLine(model);
  one("#scene").replaceChildren(
    ...chosen.episodes.map(({ name, title }) => html("option", { value: name }, title)),
    html("option", { value: EXAMPLE }, "The model's own example"),
    html("option", { value: PASTED, disabled: "", hidden: "" }, "Pasted"),
  );
  /** @type {Input} */ (one("#step")).max = String(chosen.horizon);
  one("#controls").hidden = false;
  one("#legend").hidden = !chosen.layout;
  one("#about-band").textContent = chosen.hasMembers
    ? `Shaded bands: where the ${model.members} members of the ensemble put each centre; narrow where they agree.`
    : "This service does not tell what each member of the ensemble predicts, so no band is drawn: how much "
      + "they disagree is one number, below.";
}

/** Show which scene is chosen. */
function showScene() {
  const { episode, model } = chosen;
  /** @type {HTMLSelectElement} */ (one("#scene")).value = chosen.source;
  one("#start-field").hidden = !episode;
  if (episode) {
    const slider = /** @type {Input} */ (one("#start"));
    slider.max = String(lastStart(episode));
    slider.value = String(chosen.start);
    const left = ((episode.actions.length - chosen.start) * model.dt_s).toFixed(2);
    const end = episode.outcome === "none" ? "the end" : "it happened";
    one("#start-text").textContent = `${left} s before ${end}`;
  }
  one("#about-scene").textContent = episode ? "" : chosen.scene.title;
  /** @type {Input} */ (one("#recorded")).checked = chosen.showsRecorded;
  /** @type {Input} */ (one("#recorded")).disabled = !chosen.scene.future;
  /** @type {Input} */ (one("#fan")).checked = chosen.showsFan;
  /** @type {Input} */ (one("#why")).checked = chosen.showsWhy;
}

/**
 * Show the plans, and ask about them.
 *
 * @param {number | null} [search] which of them shall be the best fallback
 */
function update(search = null) {
  why.leave();
  showPlans();
  // Without the key nothing would come but one refusal more.
  if (one("#key-form").hidden) ask(search);
}

function showPlans() {
  const isTwo = chosen.plans.length > 1;
  if (panels.length !== chosen.plans.length) {
    panels = chosen.plans.map((_, i) => {
      return new Panel(isTwo ? `Plan ${"AB"[i]}` : "The plan", chosen.model, chosen.layout !== null, {
        onPlan: (plan) => {
          chosen.plans[i] = { plan, preset: null };
          update();
        },
        onPreset: (preset) => {
          if (preset !== BEST) chosen.plans[i] = chosen.presetOf(preset);
          update(preset === BEST ? i : null);
        },
      });
    });
    one("#panels").replaceChildren(...panels.map((panel) => panel.root));
    one("#panels").classList.toggle("two", isTwo);
  }
  one("#compare").setAttribute("aria-pressed", String(isTwo));
  const hasRecorded = Boolean(chosen.scene.actions);
  panels.forEach((panel, i) => panel.showPlan(chosen.plans[i], hasRecorded));
  markStale();
}

/** Say of each panel whether what it shows is of another plan or scene than what is chosen. */
function markStale() {
  panels.forEach((panel, i) => {
    const isOf = chosen.results[i] === panel.result && panel.result?.plan === chosen.plans[i].plan;
    panel.mark(panel.result !== null && !isOf);
  });
}

const ask = latestWins(async (/** @type {number | null} */ search, isLatest) => {
  try {
    await askAll(service, chosen, search, isLatest, {
      onPlans: showPlans,
      onAnswer: () => {
        solve();
        render();
      },
    });
    if (isLatest()) askWhy();
  } catch (error) {
    chosen.dropStale();
    if (!chosen.results.length) panels.forEach((panel) => panel.clear());
    fail(error, () => update(search));
  }
});

/** Ask what the crash probability comes from, if somebody wants to see it. */
function askWhy() {
  // While a plan changes, its answer is on its way, and asks then.
  if (!chosen.showsWhy || !chosen.hasAttribution || chosen.isStale) return;
  why.want(chosen.model, chosen.scene.state, chosen.results);
  render();
}

/** @param {Result} result */
function knownOf({ plan, verdict }) {
  if (!chosen.showsWhy) return null;
  return chosen.hasAttribution ? why.of(plan, verdict) : { attribution: null, state: LACKS_IT };
}

function render() {
  const { model, step, fan, showsFan, showsWhy } = chosen;
  /** @type {Input} */ (one("#step")).value = String(step);
  one("#step-text").textContent = `${(step * model.dt_s).toFixed(2)} s`;
  one("#about-why").hidden = !showsWhy;
  const aboutFan = showsFan && fan.length ? inFan(fan, model.thresholds) : "";
  // It is read aloud when it is set.
  if (one("#about-fan").textContent !== aboutFan) one("#about-fan").textContent = aboutFan;
  panels.forEach((panel, i) => {
    if (chosen.results[i]) panel.show(chosen.results[i], chosen, knownOf(chosen.results[i]));
  });
  markStale();
}

/**
 * Say what went wrong, and try again later if that may help.
 *
 * @param {unknown} error
 * @param {() => void} retry
 */
function fail(error, retry) {
  if (!(error instanceof ServiceError)) {
    again.stop();
    console.error(error);
    complain(`This page cannot show the answer: ${error}.`);
    return;
  }
  if (error.status === 401) {
    again.stop();
    askForKey(service.key ? "This key is not known here." : "");
    return;
  }
  // A fault (500) would come again: it is not asked for.
  const wait = [0, 429, 503, 504].includes(error.status) ? again.plan(retry, error.retryAfter_s) : null;
  const what = {
    0: "The service does not answer. Is it running?",
    429: "The service has too much to do.",
    500: "The service has a fault.",
    503: "The service is not ready.",
  }[error.status] ?? "The service refused this.";
  if (wait === null) again.stop();
  const next = wait === null ? "" : `Trying again in ${wait} s.`;
  complain([what, `${error.message}.`, ...error.details, next].join(" "));
}

/** @param {string} text */
function complain(text) {
  one("#problem").hidden = false;
  one("#problem").textContent = text;
}

/** Take away what was said about a failure. */
function solve() {
  again.stop();
  one("#problem").hidden = true;
}

/** @param {string} why */
function askForKey(why) {
  if (why) complain(why);
  if (!chosen) one("#model").textContent = "";
  one("#key-form").hidden = false;
  one("#key").focus();
}

/**
 * Show a text to be copied, and copy it where the browser allows.
 *
 * @param {string} title
 * @param {string} text
 */
async function offer(title, text) {
  one("#copy-title").textContent = title;
  const area = /** @type {HTMLTextAreaElement} */ (one("#copy-text"));
  area.value = text;
  /** @type {HTMLDialogElement} */ (one("#copy")).showModal();
  area.select();
  // Without https the browser has no clipboard for pages.
  const isCopied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  one("#copied").textContent = isCopied ? "Copied." : "Copy it by hand: it is selected.";
}

function paste() {
  const text = /** @type {HTMLTextAreaElement} */ (one("#paste-text")).value;
  try {
    chosen.pasted = pastedScene(text, chosen.model);
  } catch (error) {
    one("#paste-problem").textContent = String(/** @type {Error} */ (error).message);
    return;
  }
  one("#paste-problem").textContent = "";
  /** @type {HTMLDialogElement} */ (one("#paste")).close();
  chosen.takeSource(PASTED);
  showScene();
  update();
}

/** @param {number} step */
function goTo(step) {
  chosen.step = step;
  chosen.followsCrash = false;
  render();
}

let playing = 0;

function play() {
  if (chosen.step >= chosen.horizon) goTo(0);
  one("#play").textContent = "⏸ Pause";
  playing = window.setInterval(() => {
    goTo(chosen.step + 1);
    if (chosen.step >= chosen.horizon) pause();
  }, PLAY_MS);
}

function pause() {
  clearInterval(playing);
  playing = 0;
  one("#play").textContent = "▶ Play";
}

/** URL of the service: that of the page, without its fragment. */
function base() {
  return new URL(".", location.href).href;
}

/**
 * Offer the question that is shown, as some kind of text.
 *
 * @param {string} title
 * @param {typeof curlOf} textOf
 */
function offerQuestion(title, textOf) {
  const { model, scene, needsKey, showsWhy, hasAttribution } = chosen;
  const plans = chosen.plans.map(({ plan }) => plan);
  const isWhy = showsWhy && hasAttribution && plans.length === 1;
  const body = isWhy ? attributionBody(model, scene.state, plans[0]) : safetyBody(model, scene.state, plans);
  const left = showsWhy && plans.length > 1 ? ", without the attribution: it is of one plan at a time" : "";
  offer(title + left, textOf(base(), body, needsKey, isWhy ? DEADLINE_S : 0));
}

/** @type {Record<string, (field: Input) => void>} */
const ON_INPUT = {
  scene: (field) => {
    chosen.takeSource(field.value);
    showScene();
    update();
  },
  start: (field) => {
    chosen.takeStart(Number(field.value));
    showScene();
    update();
  },
  step: (field) => {
    pause();
    goTo(Number(field.value));
  },
  recorded: (field) => {
    chosen.showsRecorded = field.checked;
    render();
  },
  fan: (field) => {
    chosen.showsFan = field.checked;
    update();
  },
  why: (field) => {
    chosen.showsWhy = field.checked;
    if (chosen.showsWhy) askWhy();
    else why.leave();
    render();
  },
};

/** @type {Record<string, () => void>} */
const ON_CLICK = {
  play: () => (playing ? pause() : play()),
  compare: () => {
    chosen.plans = chosen.plans.length > 1 ? chosen.plans.slice(0, 1) : [chosen.plans[0], chosen.presetOf("brake")];
    update();
  },
  link: () => {
    history.replaceState(null, "", fragmentOf(chosen.toLink()));
    offer("A link to this view", location.href);
  },
  curl: () => offerQuestion("The same question by curl", curlOf),
  python: () => offerQuestion("The same question in Python", pythonOf),
  "paste-open": () => /** @type {HTMLDialogElement} */ (one("#paste")).showModal(),
  "paste-use": paste,
  "paste-close": () => /** @type {HTMLDialogElement} */ (one("#paste")).close(),
  "copy-close": () => /** @type {HTMLDialogElement} */ (one("#copy")).close(),
};

function listen() {
  for (const [name, act] of Object.entries(ON_INPUT)) {
    const field = /** @type {Input} */ (one(`#${name}`));
    field.addEventListener("input", () => act(field));
  }
  for (const [name, act] of Object.entries(ON_CLICK)) one(`#${name}`).addEventListener("click", act);
  one("#key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const field = /** @type {Input} */ (one("#key"));
    service.key = field.value;
    field.value = "";
    one("#key-form").hidden = true;
    if (chosen) update();
    else load();
  });
  window.addEventListener("resize", () => chosen && render());
  window.addEventListener("hashchange", () => {
    if (!chosen || !takeFragment()) return;
    showScene();
    update();
  });
}

listen();
new Live(service, /** @type {HTMLDetailsElement} */ (one("#live")));
load();
