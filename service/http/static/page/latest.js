/** While dragging, only the newest question matters, and the service gets one at a time. */

/**
 * Return a function that asks: at most one question is on its way, and of those that come meanwhile
 * only the last one is asked afterwards.
 *
 * @template T
 * @param {(question: T, isLatest: () => boolean) => Promise<void>} ask should not reject; between two
 *   calls of the service it should stop if its question is not the latest any more
 * @returns {(question: T) => void}
 */
export function latestWins(ask) {
  /** @type {{question: T} | null} */
  let waiting = null;
  let isAsking = false;
  return async (question) => {
    waiting = { question };
    if (isAsking) return;
    isAsking = true;
    try {
      while (waiting) {
        const next = /** @type {{question: T}} */ (waiting).question;
        waiting = null;
        await ask(next, () => waiting === null);
      }
    } finally {
      isAsking = false;
    }
  };
}
