/**
 * One picture on the page: shows it, paints maps over it, marks regions, and says where the pointer
 * or the keyboard is.
 */
import { find, svg } from "./dom.js";
import { regionAt } from "./pictures.js";

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
/* What each arrow key adds to row and column. */

/**
 * @typedef {object} Listeners
 * @property {(region: number | null) => void} onHover  the pointer is over a region, or over none
 * @property {(region: number) => void} onPin  a region was clicked
 * @property {(region: number) => void} onMove  an arrow key led to a region
 * @property {() => void} onEscape
 */

export class Panel {
  /** @param {HTMLElement} figure @param {Listeners} listeners */
  constructor(figure, listeners) {
    this.figure = figure;
    this.frame = find(".frame", figure);
    this.image = /** @type {HTMLImageElement} */ (find("img", figure));
    this.canvas = /** @type {HTMLCanvasElement} */ (find("canvas", figure));
    this.marks = /** @type {any} */ (find("svg.marks", figure));
    this.listeners = listeners;
    /** @type {import("./pictures.js").Picture | null} */
    this.picture = null;
    this.at = 0;
    /** @type {{region: number, kind: string}[]} */
    this.marked = [];
    this.frame.addEventListener("pointermove", (event) => this.#hover(event));
    this.frame.addEventListener("pointerleave", () => listeners.onHover(null));
    this.frame.addEventListener("click", (event) => this.#click(event));
    this.frame.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Show a picture. */
  show(/** @type {import("./pictures.js").Picture} */ picture) {
    const { width, height, map } = picture;
    if (this.picture && this.picture !== picture) URL.revokeObjectURL(this.picture.url);
    this.picture = picture;
    this.at = Math.floor(map.grid[0] / 2) * map.grid[1] + Math.floor(map.grid[1] / 2);
    this.image.src = picture.url;
    this.image.alt = picture.name;
    this.frame.style.setProperty("--ratio", String(width / height));
    this.marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.#place();
  }

  /** Lay the canvas where the grid lies on the picture, which may be beyond its edges. */
  #place() {
    const { width, height, view, map } = this.shown();
    const { style } = this.canvas;
    style.left = `${(100 * view.left) / width}%`;
    style.top = `${(100 * view.top) / height}%`;
    style.width = `${(100 * view.cellWidth * map.grid[1]) / width}%`;
    style.height = `${(100 * view.cellHeight * map.grid[0]) / height}%`;
  }

  /** Paint a map over the picture, or none. */
  paint(/** @type {ImageData | null} */ image, /** @type {number} */ opacity = 1) {
    this.canvas.hidden = image === null;
    this.frame.classList.toggle("painted", image !== null);
    if (image === null) return;
    if (this.canvas.width !== image.width || this.canvas.height !== image.height) {
      Object.assign(this.canvas, { width: image.width, height: image.height });
    }
    this.canvas.style.opacity = String(opacity);
    const isSquares = image.width === this.shown().map.grid[1];
    this.canvas.classList.toggle("squares", isSquares);
    /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d")).putImageData(image, 0, 0);
  }

  /**
   * Mark regions, instead of those that were; what the model does not see is dimmed.
   * @param {{region: number, kind: string}[]} marks  kind: "query", "best" or "other"
   */
  mark(marks) {
    this.marked = marks;
    const { width, height, view, map, boxes } = this.shown();
    const [right, bottom] = [view.left + view.cellWidth * map.grid[1], view.top + view.cellHeight * map.grid[0]];
    const hole = `M${view.left} ${view.top}H${right}V${bottom}H${view.left}Z`;
    const unseen = svg("path", { class: "unseen", d: `M0 0H${width}V${height}H0Z${hole}` });
    const inset = (3 * width) / (this.frame.clientWidth || width); // the stroke lies inside the box
    const rects = marks.flatMap(({ region, kind }) => {
      const [left, top, right, bottom] = boxes[region];
      const [x, y] = [left + inset, top + inset];
      const place = { x, y, width: Math.max(right - inset - x, 1), height: Math.max(bottom - inset - y, 1) };
      return [svg("rect", { class: `halo ${kind}`, ...place }), svg("rect", { class: kind, ...place })];
    });
    this.marks.replaceChildren(unseen, ...rects);
  }

  /** Say which numbers the coldest and the hottest colour stand for; null: there are no colours. */
  scale(/** @type {[number, number] | null} */ ends, /** @type {string} */ name = "") {
    const element = find(".scale", this.figure);
    element.hidden = ends === null;
    if (ends === null) return;
    const [low, high] = ends.map((value) => value.toFixed(3));
    find(".low", element).textContent = low;
    find(".high", element).textContent = high;
    find(".name", element).textContent = name;
  }

  /** Give a point of the picture, in its pixels, as a point of another element, in its own. */
  placeOn(/** @type {[number, number]} */ [x, y], /** @type {Element} */ element) {
    const { width, height } = this.shown();
    const [own, others] = [this.frame.getBoundingClientRect(), element.getBoundingClientRect()];
    return [own.left - others.left + (x / width) * own.width, own.top - others.top + (y / height) * own.height];
  }

  /** Give the pointer's place on the picture, in its pixels. */
  pointOf(/** @type {PointerEvent | MouseEvent} */ event) {
    const { width, height } = this.shown();
    const { left, top, width: wide, height: high } = this.frame.getBoundingClientRect();
    return /** @type {[number, number]} */ ([
      ((event.clientX - left) / wide) * width,
      ((event.clientY - top) / high) * height,
    ]);
  }

  #hover(/** @type {PointerEvent} */ event) {
    if (!this.picture || event.pointerType === "touch") return;
    this.listeners.onHover(regionAt(this.picture, ...this.pointOf(event)));
  }

  #click(/** @type {MouseEvent} */ event) {
    if (!this.picture) return;
    // Enter on the focused frame is a click without a place.
    const region = event.detail === 0 ? this.at : regionAt(this.picture, ...this.pointOf(event));
    if (region === null) return;
    this.at = region;
    this.listeners.onPin(region);
  }

  #key(/** @type {KeyboardEvent} */ event) {
    if (!this.picture || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") this.listeners.onEscape();
    else if (event.key === "Enter" || event.key === " ") this.listeners.onPin(this.at);
    else if (event.key in STEPS) this.#step(STEPS[/** @type {keyof typeof STEPS} */ (event.key)]);
    else return;
    event.preventDefault();
  }

  /** Go to the next region that way, if the picture has one there. */
  #step(/** @type {number[]} */ [down, right]) {
    const { map } = this.shown();
    const [rows, columns] = map.grid;
    const [row, column] = [Math.floor(this.at / columns) + down, (this.at % columns) + right];
    const next = row * columns + column;
    const isThere = row >= 0 && row < rows && column >= 0 && column < columns && map.visible[next];
    if (isThere) this.at = next;
    this.listeners.onMove(this.at);
  }

  /** Give the picture that is shown. */
  shown() {
    if (!this.picture) throw new Error("no picture is shown yet");
    return this.picture;
  }
}
