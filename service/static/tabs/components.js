/** Components: all regions of both pictures together, as colours (PCA) or as segments (k-means). */
import { choice, h, slider } from "../dom.js";
import { drawColours, drawSegments, range } from "../heat.js";
import { kMeans, principalComponents } from "../reduce.js";
import { componentsSnippet } from "../snippets.js";

export const components = {
  id: "components",
  title: "Components",
  hint: "Both pictures in one space: what has the same colour has similar features.",
  unavailable: () => null,

  create(/** @type {import("../tabs.js").App} */ app) {
    /** @type {{show: "colours" | "segments", k: number}} */
    const options = { show: "colours", k: 4 };
    /** @type {unknown[]} */
    let reduced = [];
    /** @type {ReturnType<typeof principalComponents>} */
    let principal;
    let drawn = { from: /** @type {unknown[]} */ ([]), images: /** @type {Record<string, ImageData>} */ ({}), words: "" };
    const shares = h("dl", { class: "shares" });
    const k = slider({ label: "Segments", min: 2, max: 10, value: options.k }, String, (value) => change({ k: value }));
    const controls = [
      choice("Show", { colours: "Colours (PCA)", segments: "Segments (k-means)" }, options.show, (show) => change({ show })),
      shares,
      k.element,
      app.controls.cells,
      app.controls.strength,
    ];

    function change(/** @type {Partial<typeof options>} */ changes) {
      Object.assign(options, changes);
      app.changed();
    }

    /** Give the features of the visible regions of both pictures, A's first. */
    function visibleRows() {
      const maps = app.sides.map((side) => app.pictures[side].map);
      const [{ length }] = maps;
      const rows = maps.flatMap(({ features, visible }) =>
        visible.flatMap((isVisible, i) => (isVisible ? [features.subarray(i * length, (i + 1) * length)] : [])),
      );
      const values = new Float32Array(rows.length * length);
      rows.forEach((row, i) => values.set(row, i * length));
      return { values, length };
    }

    /** Lay what belongs to the visible regions of both pictures back on their grids. */
    function onGrids(/** @type {ArrayLike<number>} */ values, /** @type {number} */ elsewhere) {
      let next = 0;
      return app.bySide((side) =>
        app.pictures[side].map.visible.map((isVisible) => (isVisible ? values[next++] : elsewhere)),
      );
    }

    function render() {
      const isColours = options.show === "colours";
      shares.hidden = !isColours;
      k.element.hidden = isColours;
      const from = [app.pictures.a, app.pictures.b, options.show, options.k, app.look.smooth];
      if (from.some((part, i) => part !== drawn.from[i])) drawn = { from, ...(isColours ? colours() : segments()) };
      app.describe(drawn.words);
      for (const side of app.sides) {
        app.panels[side].paint(drawn.images[side], app.look.opacity);
        app.panels[side].mark([]);
        app.panels[side].scale(null);
      }
    }

    function colours() {
      if (reduced[0] !== app.pictures.a || reduced[1] !== app.pictures.b) {
        const { values, length } = visibleRows();
        principal = principalComponents(values, length, 3);
        reduced = [app.pictures.a, app.pictures.b];
      }
      const words = tellShares();
      const channels = principal.projections.map((projection) => {
        const [low, high] = range(projection);
        return onGrids(projection.map((value) => (value - low) / (high - low || 1)), NaN);
      });
      const images = app.bySide((side) =>
        drawColours(channels.map((channel) => channel[side]), app.pictures[side].map.grid, app.look.smooth),
      );
      return { images, words };
    }

    /** Show how much of the variance each colour stands for, and give it in words. */
    function tellShares() {
      const percent = principal.shares.map((share) => `${(100 * share).toFixed(0)} %`);
      const names = ["Red", "Green", "Blue"];
      shares.replaceChildren(
        ...names.flatMap((name, i) => [h("dt", { class: name.toLowerCase() }, name), h("dd", {}, percent[i])]),
      );
      const total = principal.shares.reduce((sum, share) => sum + share, 0);
      return `Three components hold ${(100 * total).toFixed(0)} percent of the variance.`;
    }

    function segments() {
      const { values, length } = visibleRows();
      const groups = onGrids(kMeans(values, length, Math.min(options.k, values.length / length)), -1);
      const images = app.bySide((side) => drawSegments(groups[side], app.pictures[side].map.grid));
      return { images, words: `${options.k} segments over both pictures.` };
    }

    return { controls, render, snippet: () => componentsSnippet(app, options) };
  },
};
