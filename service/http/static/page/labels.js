/** Where texts of a drawing go, so that none covers another one. */

/** A letter's width and a line's height, px, in the size of labels: roughly, as the font is the reader's own. */
const LETTER = 7.6;
const LINE = 15;

/**
 * @typedef {{x: number, y: number}} Place px, the middle of a text
 * @typedef {{text: string, places: Place[]}} Label a text, and where it may stand, the best place first
 */

/**
 * Return labels with the first place of each where nothing stands yet; those for which there is none are left
 * out. Earlier labels choose first.
 *
 * @param {Label[]} labels
 * @param {{text: string, x: number, y: number}[]} taken texts that stand already
 * @param {{width: number, height: number}} size of the drawing: no label leaves it
 * @returns {{text: string, x: number, y: number}[]}
 */
export function placed(labels, taken, { width, height }) {
  const boxes = taken.map(boxOf);
  const found = [];
  for (const { text, places } of labels) {
    for (const { x, y } of places) {
      const box = boxOf({ text, x, y });
      const isInside = box.left >= 0 && box.right <= width && box.top >= 0 && box.bottom <= height;
      if (!isInside || boxes.some((other) => overlaps(box, other))) continue;
      boxes.push(box);
      found.push({ text, x, y });
      break;
    }
  }
  return found;
}

/** @param {{text: string, x: number, y: number}} label */
function boxOf({ text, x, y }) {
  const half = (LETTER * text.length) / 2;
  return { left: x - half, right: x + half, top: y - LINE / 2, bottom: y + LINE / 2 };
}

/**
 * @param {ReturnType<typeof boxOf>} a
 * @param {ReturnType<typeof boxOf>} b
 */
function overlaps(a, b) {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}
