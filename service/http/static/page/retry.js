/** Trying again later: after a wait that grows, and never in a tab that nobody sees. */

const FIRST_S = 3;
const MOST_S = 60;

export class Retry {
  /** @param {Pick<Document, "hidden" | "addEventListener">} page */
  constructor(page) {
    this.page = page;
    this.tries = 0;
    this.timer = /** @type {ReturnType<typeof setTimeout> | undefined} */ (undefined);
    /** @type {(() => void) | null} */
    this.due = null;
    page.addEventListener("visibilitychange", () => this.#go());
  }

  /**
   * Do something later; only the last thing that was planned is done.
   *
   * @param {() => void} act
   * @param {number} asked_s what the service asks for at least; 0 if it does not say
   * @returns {number} s until then
   */
  plan(act, asked_s) {
    this.#clear();
    const first = asked_s || FIRST_S;
    const wait = Math.max(first, Math.min(MOST_S, first * 2 ** this.tries));
    this.tries += 1;
    this.timer = setTimeout(() => {
      this.due = act;
      this.#go();
    }, 1000 * wait);
    return wait;
  }

  /** Plan nothing any more; the next wait is a short one. */
  stop() {
    this.#clear();
    this.tries = 0;
  }

  #clear() {
    clearTimeout(this.timer);
    this.due = null;
  }

  #go() {
    if (this.page.hidden || !this.due) return;
    const act = this.due;
    this.due = null;
    act();
  }
}
