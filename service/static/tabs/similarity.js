/** Similarity: the region under the pointer, and how similar every other one is, in both pictures. */
import { choice, h, tick } from "../dom.js";
import { drawHeat, range } from "../heat.js";
import { positionOf } from "../pictures.js";
import { similaritySnippet } from "../snippets.js";
import { areNeighbours, cosinesOf, hottest } from "../vectors.js";

const NUM_LISTED = 5;

export const similarity = {
  id: "similarity",
  title: "Similarity",
  hint: "Point at a region of either picture: its most similar regions light up in both. Red asks, white is the best match.",
  unavailable: () => null,

  create(/** @type {import("../tabs.js").App} */ app) {
    const options = { scale: "each", leaveOut: true };
    const readout = h("div", { class: "readout" });
    const list = h("ol", { class: "ranking" });
    const controls = [
      readout,
      list,
      ...Object.values(app.controls),
      choice("Scale", { each: "Each picture", both: "Both alike" }, options.scale, (value) => {
        options.scale = value;
        app.changed();
      }),
      tick("Leave out the neighbours of the region", options.leaveOut, (checked) => {
        options.leaveOut = checked;
        app.changed();
      }),
    ];

    /** Give both pictures' cosines to the region that asks; NaN where they do not count. */
    function maps(/** @type {import("../tabs.js").Place} */ at) {
      const from = app.pictures[at.side].map;
      return app.bySide((side) => {
        const cosines = cosinesOf(from, at.region, app.pictures[side].map);
        if (side !== at.side) return { cosines, counted: cosines };
        const counted = cosines.map((cosine, region) => {
          const isOut = options.leaveOut ? areNeighbours(region, at.region, from.grid) : region === at.region;
          return isOut ? NaN : cosine;
        });
        return { cosines, counted };
      });
    }

    function render() {
      const { at } = app.state;
      const shown = maps(at);
      const both = range([...shown.a.counted, ...shown.b.counted]);
      for (const side of app.sides) {
        const { cosines, counted } = shown[side];
        const ends = options.scale === "both" ? both : range(counted);
        const best = hottest(counted);
        const panel = app.panels[side];
        panel.paint(drawHeat(cosines, app.pictures[side].map.grid, { ends, ...app.look }), app.look.opacity);
        panel.scale(ends, "cosine");
        const marks = best < 0 ? [] : [{ region: best, kind: "best" }];
        panel.mark(side === at.side ? [...marks, { region: at.region, kind: "query" }] : marks);
      }
      tell(shown);
    }

    /** Say in words and numbers what the colours show. */
    function tell(/** @type {ReturnType<typeof maps>} */ shown) {
      const { at } = app.state;
      const other = at.side === "a" ? "b" : "a";
      const { counted } = shown[other];
      const order = [...counted.keys()].filter((region) => !Number.isNaN(counted[region]));
      order.sort((one, next) => counted[next] - counted[one]);
      const best = order[0];
      const asks = positionOf(app.pictures[at.side], at.region);
      const found = positionOf(app.pictures[other], best);
      const back = hottest(cosinesOf(app.pictures[other].map, best, app.pictures[at.side].map));
      readout.replaceChildren(
        h("strong", {}, counted[best].toFixed(3)),
        h("p", {}, `${at.side.toUpperCase()} ${asks}`, h("br"), `→ ${other.toUpperCase()} ${found}`),
        h("p", { class: "soft" }, back === at.region ? "mutual" : "one way"),
      );
      list.replaceChildren(...order.slice(0, NUM_LISTED).map((region) => row(other, region, counted)));
      app.describe(
        `${at.side.toUpperCase()}, ${asks}. Best in ${other.toUpperCase()}: ${found}, ` +
          `cosine ${counted[best].toFixed(3)}${back === at.region ? ", mutual" : ""}.`,
      );
    }

    /** Make a line of the ranking. */
    function row(
      /** @type {"a" | "b"} */ side,
      /** @type {number} */ region,
      /** @type {Float32Array} */ cosines,
    ) {
      const [low, high] = range(cosines);
      const bar = h("meter", { min: 0, max: 1, value: (cosines[region] - low) / (high - low || 1), "aria-hidden": "true" });
      const name = positionOf(app.pictures[side], region);
      return h("li", {}, h("span", {}, name), bar, h("b", {}, cosines[region].toFixed(3)));
    }

    return { controls, render, snippet: () => similaritySnippet(app) };
  },
};
