/** What `/metrics` said over the last minutes: read, kept for a while, and asked as Prometheus would. */

/** Series that the page looks at; the others are not kept. */
const KEPT =
  /^(world_model_(requests_total|outcomes_total|request_seconds_bucket|batch_rows_(sum|count)|engine_errors_total|safety_verdicts_total|ready|vram_bytes|process_resident_bytes|info)|process_start_time_seconds)$/;
/** As long as the longest window of an alert. */
export const KEPT_S = 15 * 60;

/**
 * @typedef {{name: string, labels: Record<string, string>}} Series
 * @typedef {{time_s: number, values: Map<string, number>}} Sample values by the series' text
 * @typedef {(series: Series) => boolean} Filter
 */

/**
 * Read Prometheus' text format.
 *
 * @param {string} text
 * @returns {Map<string, number>} values by their series' text, such as `name{label="value"}`
 */
export function read(text) {
  const values = new Map();
  for (const line of text.split("\n")) {
    const [, series, name, value] = line.match(/^(([a-z_]+)(?:\{.*\})?) (\S+)/) ?? [];
    if (series && KEPT.test(name)) values.set(series, Number(value.replace("Inf", "Infinity")));
  }
  return values;
}

/**
 * @param {string} text
 * @returns {Series}
 */
export function seriesOf(text) {
  const [name, rest = ""] = text.split("{");
  const pairs = [...rest.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, label, value]) => [label, value]);
  return { name, labels: Object.fromEntries(pairs) };
}

export class History {
  constructor() {
    /** @type {Sample[]} */
    this.samples = [];
    /** @type {Map<string, Series>} */
    this.series = new Map();
  }

  /** @param {Sample} sample */
  add(sample) {
    this.samples.push(sample);
    while (this.samples[0].time_s < sample.time_s - KEPT_S) this.samples.shift();
    for (const text of sample.values.keys()) {
      if (!this.series.has(text)) this.series.set(text, seriesOf(text));
    }
  }

  /**
   * Return the series of a name.
   *
   * @param {string} name
   * @param {Filter} [filter]
   */
  #named(name, filter = () => true) {
    return [...this.series].filter(([, series]) => series.name === name && filter(series));
  }

  /**
   * Return the last sum of a gauge's series; null if there is none.
   *
   * @param {string} name
   * @param {Filter} [filter]
   */
  last(name, filter) {
    const values = this.#named(name, filter).flatMap(
      ([text]) => this.samples.at(-1)?.values.get(text) ?? [],
    );
    return values.length ? values.reduce((a, b) => a + b, 0) : null;
  }

  /**
   * Return by how much counters rose, in all and over how long; a restart, which sets them to 0, is
   * no fall.
   *
   * @param {string} name
   * @param {number} window_s
   * @param {Filter} [filter]
   * @param {number} [until] index of the last sample
   */
  increase(name, window_s, filter, until = this.samples.length - 1) {
    const samples = this.#window(window_s, until);
    let total = 0;
    for (const [text] of this.#named(name, filter)) {
      for (let i = 1; i < samples.length; i++) {
        const [before, after] = [samples[i - 1].values.get(text), samples[i].values.get(text)];
        if (before !== undefined && after !== undefined) total += after < before ? after : after - before;
      }
    }
    return total;
  }

  /**
   * Return how often a gauge changed.
   *
   * @param {string} name
   * @param {number} window_s
   */
  changes(name, window_s) {
    const samples = this.#window(window_s, this.samples.length - 1);
    return this.#named(name).reduce((count, [text]) => {
      const values = samples
        .map(({ values: of }) => of.get(text))
        .filter((value) => value !== undefined);
      return count + values.slice(1).filter((value, i) => value !== values[i]).length;
    }, 0);
  }

  /**
   * Return a quantile of a histogram as `histogram_quantile` estimates it: evenly within a bucket.
   * Null if nothing was counted.
   *
   * @param {number} q
   * @param {string} name of the histogram, without `_bucket`
   * @param {number} window_s
   * @param {Filter} [filter]
   * @param {number} [until]
   */
  quantile(q, name, window_s, filter = () => true, until) {
    const bounds = new Set(
      this.#named(`${name}_bucket`, filter).map(([, series]) => Number(series.labels.le.replace("+Inf", "Infinity"))),
    );
    const sorted = [...bounds].sort((a, b) => a - b);
    const counts = sorted.map((bound) =>
      this.increase(
        `${name}_bucket`,
        window_s,
        (series) => filter(series) && Number(series.labels.le.replace("+Inf", "Infinity")) === bound,
        until,
      ),
    );
    const total = counts.at(-1) ?? 0;
    if (!total) return null;
    const i = counts.findIndex((count) => count >= q * total);
    if (sorted[i] === Infinity) return sorted[i - 1];
    const [low, below] = i ? [sorted[i - 1], counts[i - 1]] : [0, 0];
    return low + ((sorted[i] - low) * (q * total - below)) / (counts[i] - below);
  }

  /**
   * Return how long a window is in truth, s: what the page has not seen is not in it.
   *
   * @param {number} window_s
   * @param {number} [until]
   */
  seen_s(window_s, until = this.samples.length - 1) {
    const samples = this.#window(window_s, until);
    return samples.length ? samples[samples.length - 1].time_s - samples[0].time_s : 0;
  }

  /**
   * @param {number} window_s
   * @param {number} until
   */
  #window(window_s, until) {
    const end = this.samples[until]?.time_s ?? 0;
    return this.samples.slice(0, until + 1).filter(({ time_s }) => time_s >= end - window_s);
  }
}
