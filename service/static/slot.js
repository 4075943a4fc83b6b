/**
 * One place for a picture: its panel, the row of controls below it, dropping and pasting files, and
 * what is said when a file is refused.
 */
import { Refusal } from "./api.js";
import { makeCropper } from "./crop.js";
import { find, h } from "./dom.js";
import { save } from "./downloads.js";
import { SAMPLES, fetchSample, fileName, loadPicture } from "./pictures.js";

/** @typedef {import("./pictures.js").Original} Original */
/** @typedef {import("./pictures.js").Change} Change */

export class Slot {
  /**
   * @param {HTMLElement} figure
   * @param {import("./panel.js").Panel} panel
   * @param {{limits: () => {fit: string, maxBytes: number}, onPicture: (picture: import("./pictures.js").Picture) => void}} wires
   */
  constructor(figure, panel, wires) {
    this.figure = figure;
    this.panel = panel;
    this.wires = wires;
    this.turn = 0; // of several loads the last one counts
    /** @type {{original: Original | Promise<Original>, changes: Change[]} | null} */
    this.wanted = null; // what was asked for last: what is shown, or what will be
    this.#wire();
  }

  /** Load a file in place of the picture; if it is refused, the picture stays and the reason is said. */
  async load(/** @type {Original | Promise<Original>} */ original, /** @type {Change[]} */ changes = []) {
    const turn = ++this.turn;
    this.wanted = { original, changes };
    this.figure.setAttribute("aria-busy", "true");
    try {
      const chosen = await original;
      const picture = await loadPicture(chosen, changes, this.wires.limits()).catch((error) => {
        throw error instanceof Refusal ? new Refusal(`${chosen.name}: ${error.message}`, error.code) : error;
      });
      if (turn === this.turn) this.#take(picture);
      else URL.revokeObjectURL(picture.url);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (turn === this.turn) {
        this.#refuse(error.message);
        this.wanted = null;
      }
    } finally {
      if (turn === this.turn) this.figure.removeAttribute("aria-busy");
    }
  }

  /** Load a shipped picture. */
  sample(/** @type {string} */ name, /** @type {Change[]} */ changes = []) {
    return this.load(fetchSample(name), changes);
  }

  /** Load the picture once more: another change, or another fit. */
  again(/** @type {(changes: Change[]) => Change[]} */ change = (changes) => changes) {
    const { original, changes } = this.wanted ?? this.panel.shown();
    return this.load(original, change(changes));
  }

  #take(/** @type {import("./pictures.js").Picture} */ picture) {
    this.#refuse("");
    this.panel.show(picture);
    const { width, height, milliseconds, map, isSample, name } = picture;
    const [rows, columns] = map.grid;
    find(".facts", this.figure).textContent =
      `${fileName(picture)} · ${width} x ${height} px · ${rows} x ${columns} regions · ${Math.round(milliseconds)} ms`;
    for (const button of this.figure.querySelectorAll(".samples button")) {
      button.setAttribute("aria-pressed", String(isSample && /** @type {HTMLElement} */ (button).dataset.name === name));
    }
    for (const button of this.figure.querySelectorAll(".changed")) {
      /** @type {HTMLElement} */ (button).hidden = picture.changes.length === 0;
    }
    this.wires.onPicture(picture);
  }

  /** Say why a file was not taken; nothing if the reason is empty. */
  #refuse(/** @type {string} */ reason) {
    const notice = find(".refused", this.figure);
    notice.hidden = reason === "";
    notice.textContent = reason && `${reason.replace(/\.$/, "")}.`;
  }

  #wire() {
    find(".samples", this.figure).append(...SAMPLES.map((name) => this.#sampleButton(name)));
    const input = /** @type {HTMLInputElement} */ (find("input[type=file]", this.figure));
    input.addEventListener("change", () => {
      this.#files(input.files);
      input.value = ""; // the same file may be chosen again
    });
    this.figure.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.figure.classList.add("over");
    });
    this.figure.addEventListener("dragleave", () => this.figure.classList.remove("over"));
    this.figure.addEventListener("drop", (event) => {
      event.preventDefault();
      this.figure.classList.remove("over");
      this.#files(event.dataTransfer?.files);
    });
    if (this.figure.querySelector("[data-action]")) this.#wireChanges();
  }

  /** Connect the buttons that change the picture. */
  #wireChanges() {
    const startCrop = makeCropper(this.figure, this.panel, (box) => this.#change({ kind: "crop", box }));
    const actions = {
      flip: () => this.#change({ kind: "flip" }),
      turn: () => this.#change({ kind: "turn" }),
      crop: startCrop,
      reset: () => this.again(() => []),
      save: () => this.#save(),
    };
    for (const [name, act] of Object.entries(actions)) {
      find(`[data-action=${name}]`, this.figure).addEventListener("click", act);
    }
  }

  #sampleButton(/** @type {string} */ name) {
    const image = h("img", { src: `photographs/${name}`, alt: "", draggable: "false" });
    const title = name.replace(/\..*/, "");
    const load = () => this.sample(name);
    return h("button", { type: "button", "data-name": name, "aria-pressed": "false", "aria-label": title, title, click: load }, image);
  }

  /** Load the first of some files. */
  #files(/** @type {FileList | null | undefined} */ files) {
    const file = files?.[0];
    if (file) this.load({ name: file.name || "picture", file, isSample: false });
  }

  #change(/** @type {Change} */ change) {
    return this.again((changes) => [...changes, change]);
  }

  #save() {
    const picture = this.panel.shown();
    save(picture.file, fileName(picture));
  }
}
