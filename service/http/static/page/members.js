/** What each member of the ensemble predicts, from what the first ones predict together. */

/**
 * Return each member's states. The service answers for the first m members by their mean, so the
 * m-th one's states are m times that mean less m - 1 times the one before.
 *
 * @param {number[][][]} means [E][H+1][S], of the first 1, 2, ... E members
 * @returns {number[][][]} [E][H+1][S]
 */
export function membersFrom(means) {
  return means.map((mean, m) =>
    mean.map((state, k) =>
      state.map((value, i) => (m ? (m + 1) * value - m * means[m - 1][k][i] : value)),
    ),
  );
}
