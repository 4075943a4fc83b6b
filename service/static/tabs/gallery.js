/** Gallery: many pictures, found by one of them or by a part of it. */
import { Refusal } from "../api.js";
import { fetchNear, fetchPage, remove, search, send, thumbnail } from "../collection.js";
import { h, slider } from "../dom.js";
import { chosenFiles, droppedFiles } from "../files.js";
import { QueryPicture, place } from "../query.js";

const LEAST_SCORE = 0.95;

/** @typedef {import("../collection.js").Shown} Shown */

export const gallery = {
  id: "gallery",
  title: "Gallery",
  hint: "Drop a folder of pictures. Click one for more like it, draw a box on it to search for a part.",
  unavailable: (/** @type {any} */ info) => (info.gallery ? null : "No gallery: it wants the extra 'gallery' and ESVIT_GALLERY_PATH."),

  create(/** @type {import("../tabs.js").App} */ app) {
    /** @type {import("../collection.js").Look | null} */
    let look = null;
    /** @type {string | null} */
    let next = null;
    let [count, least, isStopped, turn] = [0, LEAST_SCORE, false, 0];

    const title = h("h2", { class: "heading", tabindex: -1 });
    const notice = h("p", { class: "refused", role: "alert", hidden: true });
    const bar = /** @type {HTMLProgressElement} */ (h("progress", { value: 0, max: 1, "aria-label": "Pictures sent" }));
    const told = h("span", { role: "status" });
    const stop = h("button", { type: "button", click: () => (isStopped = true) }, "Stop");
    const progress = h("div", { class: "sending", hidden: true }, bar, told, stop);
    const reasons = h("ul");
    const refused = h("details", { class: "reasons", hidden: true }, h("summary"), reasons);
    const wall = h("div", { class: "wall" });
    const more = h("button", { type: "button", hidden: true, click: () => attempt(nextPage) }, "More");
    const query = new QueryPicture((box) => {
      if (look) attempt(() => find({ .../** @type {import("../collection.js").Look} */ (look), box }));
    });
    const forget = deleter("Delete…", () => "Delete this picture", forgetQuery);
    query.buttons.append(forget, h("button", { type: "button", click: () => attempt(list) }, "All pictures"));

    const add = chooser("Add a folder…", { webkitdirectory: true, multiple: true }, (files) => attempt(() => take(files)));
    const addFiles = chooser("Add pictures…", { multiple: true }, (files) => attempt(() => take(files)));
    const ask = chooser("Search with a picture…", {}, (files) => attempt(() => findFile(files)));
    const door = h("div", { class: "door" }, h("p", {}, "Drop a folder or pictures here"), h("div", { class: "group" }, add, addFiles, ask));
    const stage = h("div", { id: "gallery" }, door, notice, progress, refused, query.element, title, wall, more);
    wireDrop();

    const nearness = slider(
      { label: "Near-duplicates from", min: 0.8, max: 1, step: 0.005, value: LEAST_SCORE },
      (value) => value.toFixed(3),
      (value) => (least = value),
    );
    const ofSome = /** @type {HTMLButtonElement[]} */ ([
      h("button", { type: "button", click: () => attempt(showNear) }, "Find near-duplicates"),
      deleter("Empty the gallery…", () => `Delete all ${count} pictures`, empty),
    ]);
    const controls = [
      nearness.element,
      ...ofSome,
    ];
    attempt(list);

    /** Do something, and say why it did not go. */
    async function attempt(/** @type {() => Promise<void>} */ act) {
      notice.hidden = true;
      try {
        await act();
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        notice.textContent = error.message;
        notice.hidden = false;
      }
    }

    /** Show all pictures from the beginning. */
    async function list() {
      const mine = ++turn;
      look = null;
      query.hide();
      const page = await fetchPage(null);
      if (mine !== turn) return;
      ({ count, next } = page);
      for (const button of ofSome) button.disabled = count === 0;
      show(count === 1 ? "1 picture" : `${count} pictures`, page.pictures);
    }

    async function nextPage() {
      const mine = turn;
      const page = await fetchPage(next);
      if (mine !== turn) return;
      next = page.next;
      wall.append(...page.pictures.map(card));
      more.hidden = next === null;
    }

    /** Search, and show what is found. */
    async function find(/** @type {import("../collection.js").Look} */ wanted) {
      const mine = ++turn;
      look = wanted;
      next = null;
      const results = await search(wanted);
      if (mine !== turn) return;
      show(wanted.box ? "Where this is, the best first" : "More like this, the best first", results);
      app.changed();
    }

    async function findLike(/** @type {Shown} */ picture) {
      query.show(await thumbnail(picture.id), picture.name || picture.id, picture);
      forget.hidden = false;
      query.element.scrollIntoView({ block: "nearest" });
      await find({ query: { id: picture.id }, box: null, fit: app.state.fit });
    }

    async function findFile(/** @type {import("../files.js").Chosen} */ { pictures: [named] }) {
      if (!named) throw new Refusal("There is no picture in it");
      const size = await createImageBitmap(named.file).catch(() => {
        throw new Refusal("This browser cannot show the picture");
      });
      query.show(URL.createObjectURL(named.file), named.name, size);
      forget.hidden = true;
      await find({ query: { file: named.file }, box: null, fit: app.state.fit });
    }

    async function forgetQuery() {
      if (look && "id" in look.query) await remove([look.query.id]);
      await list();
    }

    /** Send files, and show how far that is. */
    async function take(/** @type {import("../files.js").Chosen} */ { pictures: files, others }) {
      if (files.length === 0) throw new Refusal("There is no picture in it");
      isStopped = false;
      progress.hidden = false;
      refused.hidden = true;
      bar.max = files.length;
      const tell = (/** @type {number} */ sent, /** @type {number} */ added, /** @type {string[]} */ bad) => {
        bar.value = sent;
        told.textContent = `${sent} of ${files.length}: ${added} new, ${sent - added - bad.length} known, ${bad.length} refused${others ? `; ${others} other files left out` : ""}`;
        refused.hidden = bad.length === 0;
        /** @type {Node} */ (refused.firstChild).textContent = `${bad.length} refused`;
        reasons.replaceChildren(...bad.map((reason) => h("li", {}, reason)));
      };
      tell(0, 0, []);
      stop.hidden = false;
      const maxBytes = app.info.limits.max_body_bytes;
      try {
        await send(files, { fit: app.state.fit, maxBytes, isStopped: () => isStopped, progress: tell });
      } finally {
        stop.hidden = true;
        await list();
      }
    }

    /** Go through the gallery and show groups of pictures that are nearly the same. */
    async function showNear() {
      const mine = ++turn;
      look = next = null;
      query.hide();
      show("Near-duplicates", []);
      /** @type {string | null} */
      let start = null;
      let [looked, groups] = [0, 0];
      do {
        const page = await fetchNear(least, start);
        if (mine !== turn) return;
        looked += page.looked_at;
        groups += page.pictures.length;
        for (const { near, ...picture } of page.pictures) {
          wall.append(h("div", { class: "same" }, card(picture), ...near.map(card)));
        }
        title.textContent = `${groups} ${groups === 1 ? "group" : "groups"} of near-duplicates among ${looked} pictures`;
        start = page.next;
      } while (start !== null);
      app.describe(title.textContent ?? "");
    }

    function show(/** @type {string} */ heading, /** @type {Shown[]} */ pictures) {
      title.textContent = heading;
      wall.replaceChildren(...pictures.map(card));
      more.hidden = next === null;
      app.describe(`${heading}: ${pictures.length} shown.`);
    }

    /** Make a picture of the wall. */
    function card(/** @type {Shown} */ picture) {
      const { id, name, width, height, score, box } = picture;
      const image = /** @type {HTMLImageElement} */ (h("img", { alt: "", loading: "lazy" }));
      thumbnail(id).then((url) => (image.src = url));
      const words = [name || id.slice(0, 8), ...(score === undefined ? [] : [score.toFixed(3)])];
      const caption = h("span", { class: "caption" }, ...words.map((word) => h("span", {}, word)));
      const element = h("button", { type: "button", class: "card", "data-id": id, "aria-label": words.join(", "), click: () => attempt(() => findLike(picture)) }, image, caption);
      element.style.aspectRatio = String(Math.min(2.5, Math.max(0.5, width / height)));
      if (box && picture.mutual) {
        const part = h("span", { class: "part" });
        place(part, [box[0] / width, box[1] / height, box[2] / width, box[3] / height]);
        element.append(part);
      }
      return element;
    }

    /** Make a button that deletes when it is pressed twice: the second time it says what. */
    function deleter(/** @type {string} */ words, /** @type {() => string} */ question, /** @type {() => Promise<void>} */ act) {
      const button = h("button", { type: "button", click: () => (button.dataset.sure ? attempt(sure) : ask()) }, words);
      const ask = () => {
        button.dataset.sure = "yes";
        button.textContent = `${question()}: sure?`;
      };
      const calm = () => {
        delete button.dataset.sure;
        button.textContent = words;
      };
      const sure = async () => {
        calm();
        await act();
      };
      button.addEventListener("blur", calm);
      return button;
    }

    async function empty() {
      await remove("all");
      await list();
    }

    function wireDrop() {
      stage.addEventListener("dragover", (event) => {
        event.preventDefault();
        stage.classList.add("over");
      });
      stage.addEventListener("dragleave", () => stage.classList.remove("over"));
      stage.addEventListener("drop", (event) => {
        event.preventDefault();
        stage.classList.remove("over");
        const files = event.dataTransfer && droppedFiles(event.dataTransfer);
        if (files) attempt(async () => take(await files));
      });
    }

    return { controls, stage, render: () => {} };
  },
};

/** Make a button that opens a file chooser. */
function chooser(
  /** @type {string} */ words,
  /** @type {import("../dom.js").Attributes} */ attributes,
  /** @type {(chosen: import("../files.js").Chosen) => void} */ taken,
) {
  const input = /** @type {HTMLInputElement} */ (
    h("input", { type: "file", accept: "image/*", "aria-label": words, ...attributes, change: () => {
      taken(chosenFiles(input.files));
      input.value = "";
    } })
  );
  return h("label", { class: "button file" }, input, words);
}
