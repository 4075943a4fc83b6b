/** A box drawn on a picture, by pointer, or its centre by keyboard. */
import { find } from "./dom.js";

const CENTRE = 0.15;
/* What the centre leaves out on each side. */

const LEAST = 8;
/* Pixels of the picture that a box must have on each side; a smaller one was a mere click. */

/** @typedef {[number, number, number, number]} Box  left, top, right, bottom in the picture's pixels */

/**
 * Make a picture croppable.
 * @param {HTMLElement} figure  gets the class "cropping" while a box is awaited
 * @param {import("./panel.js").Panel} panel
 * @param {(box: Box) => void} onBox
 * @returns {() => void}  begins to wait for a box
 */
export function makeCropper(figure, panel, onBox) {
  const element = find(".crop-box", figure);
  /** @type {[number, number] | null} */
  let corner = null;

  function stop() {
    corner = null;
    element.hidden = true;
    figure.classList.remove("cropping");
  }

  function end(/** @type {Box | null} */ box) {
    stop();
    const isBox = box && box[2] - box[0] >= LEAST && box[3] - box[1] >= LEAST;
    onBox(isBox ? box : centreBox(panel.shown()));
  }

  function show(/** @type {Box} */ [left, top, right, bottom]) {
    const { width, height } = panel.shown();
    const inset = [top / height, 1 - right / width, 1 - bottom / height, left / width];
    element.style.inset = inset.map((share) => `${100 * share}%`).join(" ");
    element.hidden = false;
  }

  const between = (/** @type {MouseEvent} */ event) =>
    corner && boxBetween(panel.shown(), corner, panel.pointOf(event));
  /** @type {Record<string, (event: any) => void>} */
  const acts = {
    pointerdown(event) {
      corner = panel.pointOf(event);
      panel.frame.setPointerCapture(event.pointerId);
    },
    pointermove(event) {
      const box = between(event);
      if (box) show(box);
    },
    click: (event) => end(between(event)),
    keydown(event) {
      if (event.key === "Escape") stop();
      else if (event.key === "Enter" || event.key === " ") end(null);
      else return;
      event.preventDefault();
    },
  };
  for (const [name, act] of Object.entries(acts)) {
    const listen = (/** @type {Event} */ event) => {
      if (!figure.classList.contains("cropping")) return;
      event.stopImmediatePropagation(); // while a box is drawn, nothing is pinned or pointed at
      act(event);
    };
    panel.frame.addEventListener(name, listen, { capture: true });
  }
  return () => {
    figure.classList.add("cropping");
    panel.frame.focus();
  };
}

/** Give the box between two points, in whole pixels inside a picture. */
function boxBetween(
  /** @type {{width: number, height: number}} */ { width, height },
  /** @type {[number, number]} */ [x1, y1],
  /** @type {[number, number]} */ [x2, y2],
) {
  const inside = (/** @type {number} */ value, /** @type {number} */ most) =>
    Math.round(Math.min(Math.max(value, 0), most));
  return /** @type {Box} */ ([
    inside(Math.min(x1, x2), width),
    inside(Math.min(y1, y2), height),
    inside(Math.max(x1, x2), width),
    inside(Math.max(y1, y2), height),
  ]);
}

/** Give the middle of a picture. */
function centreBox(/** @type {{width: number, height: number}} */ picture) {
  const { width, height } = picture;
  const corner = /** @type {[number, number]} */ ([CENTRE * width, CENTRE * height]);
  return boxBetween(picture, corner, [width - corner[0], height - corner[1]]);
}
