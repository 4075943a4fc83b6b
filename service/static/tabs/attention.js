/** Attention of the last block: what the region under the pointer looks at, head by head. */
import { choice, h } from "../dom.js";
import { drawHeat, range } from "../heat.js";
import { loadAttention, positionOf } from "../pictures.js";
import { attentionSnippet } from "../snippets.js";

export const attention = {
  id: "attention",
  title: "Attention",
  hint: "Point at a region: the picture shows where the last block looks from there.",

  unavailable(/** @type {any} */ info) {
    if (info.outputs.attention[0] > 0) return null;
    return `${info.arch} has no attention: it is no transformer, so there is no attention tab.`;
  },

  create(/** @type {import("../tabs.js").App} */ app) {
    const numHeads = app.info.outputs.attention[0];
    /** @type {{head: number | "mean", query: "pointer" | "pooled"}} */
    const options = { head: "mean", query: "pointer" };
    const small = Array.from({ length: numHeads }, () => /** @type {HTMLCanvasElement} */ (h("canvas")));
    const status = h("p", { class: "soft", role: "status" });
    const heads = h(
      "fieldset",
      { class: "heads" },
      h("legend", {}, `Heads of the last block`),
      h("div", {}, headButton("mean", h("span", { class: "mean" }, "Mean"), true), ...small.map((canvas, head) => headButton(head, canvas, false))),
    );
    const query = choice("From", { pointer: "The region", pooled: "All regions" }, "pointer", (value) => {
      options.query = value;
      app.changed();
    });
    const controls = [query, heads, status, ...Object.values(app.controls)];

    /** Make a head's button: a radio button that shows its map. */
    function headButton(
      /** @type {number | "mean"} */ head,
      /** @type {HTMLElement} */ face,
      /** @type {boolean} */ checked,
    ) {
      const select = () => {
        options.head = head;
        app.changed();
      };
      const input = h("input", { type: "radio", name: "head", value: head, checked, change: select });
      const name = head === "mean" ? "" : String(head);
      return h("label", { title: head === "mean" ? "mean of all heads" : `head ${head}` }, input, face, h("small", {}, name));
    }

    /** Have both pictures' attention computed where that was not done yet. */
    async function load() {
      const lacking = app.sides.map((side) => app.pictures[side]).filter((picture) => !picture.attention);
      if (lacking.length === 0) return true;
      status.textContent = "Computing attention…";
      await Promise.all(lacking.map((picture) => loadAttention(picture, app.state.fit)));
      status.textContent = "";
      return false;
    }

    /** Give one head's weights, or their mean, from a region or from all of them (null). */
    function weights(
      /** @type {import("../pictures.js").Picture} */ picture,
      /** @type {number | "mean"} */ head,
      /** @type {number | null} */ region,
    ) {
      const L = picture.map.visible.length;
      const { values } = /** @type {{values: Float32Array}} */ (picture.attention);
      const row = new Float32Array(L);
      const chosen = head === "mean" ? [...Array(numHeads).keys()] : [head];
      const asking = region === null ? [...Array(L).keys()] : [region];
      for (const one of chosen) {
        for (const query of asking) {
          const start = (one * L + query) * L;
          for (let i = 0; i < L; i++) row[i] += values[start + i];
        }
      }
      return row.map((sum) => sum / (chosen.length * asking.length));
    }

    function render() {
      load()
        .then((isThere) => (isThere ? show() : app.changed()))
        .catch((error) => (status.textContent = error.message));
    }

    function show() {
      const { at } = app.state;
      for (const side of app.sides) {
        const picture = app.pictures[side];
        const region = side === at.side && options.query === "pointer" ? at.region : null;
        const row = weights(picture, options.head, region);
        const ends = range(row);
        app.panels[side].paint(drawHeat(row, picture.map.grid, { ends, ...app.look }), app.look.opacity);
        app.panels[side].scale(ends, region === null ? "weight, pooled" : "weight");
        app.panels[side].mark(region === null ? [] : [{ region, kind: "query" }]);
      }
      showHeads();
    }

    /** Draw every head small, for the picture that is pointed at. */
    function showHeads() {
      const { at } = app.state;
      const picture = app.pictures[at.side];
      const region = options.query === "pointer" ? at.region : null;
      const { grid } = picture.map;
      small.forEach((canvas, head) => {
        const row = weights(picture, head, region);
        const image = drawHeat(row, grid, { ends: range(row), smooth: false, look: "viridis" });
        if (canvas.width !== image.width) Object.assign(canvas, { width: image.width, height: image.height });
        /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")).putImageData(image, 0, 0);
      });
      const from = region === null ? "all regions" : positionOf(picture, region);
      const head = options.head === "mean" ? `mean of ${numHeads} heads` : `head ${options.head}`;
      app.describe(`${at.side.toUpperCase()}, from ${from}, ${head}.`);
    }

    return { controls, render, snippet: () => attentionSnippet(app, options) };
  },
};
