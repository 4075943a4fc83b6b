/** The picture that a gallery is searched with: shown large, with a box that is drawn on it. */
import { h } from "./dom.js";

const LEAST = 0.02;
/* Of a side; a smaller box is a click, and takes the box away. */

const MIDDLE = [0.25, 0.25, 0.75, 0.75];

export class QueryPicture {
  /** @param {(box: number[] | null) => void} onBox  told the box in pixels, null for the whole picture */
  constructor(onBox) {
    this.onBox = onBox;
    this.size = { width: 1, height: 1 };
    /** @type {number[] | null} */
    this.box = null; // left, top, right, bottom as shares of the sides
    this.image = /** @type {HTMLImageElement} */ (h("img", { alt: "", draggable: "false" }));
    this.mark = h("div", { class: "part", hidden: true });
    this.frame = h("div", { class: "frame asked" }, this.image, this.mark);
    this.title = h("b");
    this.whole = h("button", { type: "button", click: () => this.#set(null) }, "Whole picture");
    const middle = h("button", { type: "button", click: () => this.#set(MIDDLE) }, "Its middle");
    this.buttons = h("div", { class: "group" }, this.whole, middle);
    this.element = h(
      "section",
      { class: "query", hidden: true, "aria-label": "The picture that is searched with" },
      this.frame,
      h("div", {}, this.title, h("p", { class: "soft" }, "Draw a box on it to search for what is inside."), this.buttons),
    );
    this.#wire();
  }

  /** Show another picture, without a box. */
  show(/** @type {string} */ url, /** @type {string} */ name, /** @type {{width: number, height: number}} */ size) {
    this.size = size;
    this.image.src = url;
    this.title.textContent = name;
    this.frame.style.setProperty("--ratio", String(size.width / size.height));
    this.element.hidden = false;
    this.#mark(null);
  }

  hide() {
    this.element.hidden = true;
  }

  /** Take a box, and say so. */
  #set(/** @type {number[] | null} */ box) {
    this.#mark(box);
    const { width, height } = this.size;
    this.onBox(box && [box[0] * width, box[1] * height, box[2] * width, box[3] * height]);
  }

  #mark(/** @type {number[] | null} */ box) {
    this.box = box;
    this.mark.hidden = box === null;
    if (box) place(this.mark, box);
  }

  #wire() {
    /** @type {[number, number] | null} */
    let start = null;
    const at = (/** @type {PointerEvent} */ event) => {
      const { left, top, width, height } = this.frame.getBoundingClientRect();
      const share = (/** @type {number} */ x) => Math.min(1, Math.max(0, x));
      return /** @type {[number, number]} */ ([share((event.clientX - left) / width), share((event.clientY - top) / height)]);
    };
    const between = (/** @type {[number, number]} */ [x, y], /** @type {[number, number]} */ [u, v]) => [
      Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v),
    ];
    this.frame.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      start = at(event);
      this.frame.setPointerCapture(event.pointerId);
    });
    this.frame.addEventListener("pointermove", (event) => {
      if (start) this.#mark(between(start, at(event)));
    });
    this.frame.addEventListener("pointerup", (event) => {
      if (!start) return;
      const box = between(start, at(event));
      start = null;
      const isBox = box[2] - box[0] > LEAST && box[3] - box[1] > LEAST;
      this.#set(isBox ? box : null);
    });
    this.frame.addEventListener("pointercancel", () => {
      start = null;
      this.#mark(null);
    });
  }
}

/** Lay an element over a box, whose sides are shares of the picture's. */
export function place(/** @type {HTMLElement} */ element, /** @type {number[]} */ [left, top, right, bottom]) {
  const percent = (/** @type {number} */ share) => `${100 * share}%`;
  Object.assign(element.style, {
    left: percent(left), top: percent(top), width: percent(right - left), height: percent(bottom - top),
  });
}
