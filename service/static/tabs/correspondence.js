/** Correspondence: lines between regions that are each other's best match. */
import { h, slider, svg, tick } from "../dom.js";
import { range, viridis } from "../heat.js";
import { centerOf, positionOf } from "../pictures.js";
import { correspondenceSnippet } from "../snippets.js";
import { matchRegions, rowAndColumn, selectMatches } from "../vectors.js";

const FIRST_LINES = 20;
const BINS = 32;

export const correspondence = {
  id: "correspondence",
  title: "Correspondence",
  hint: "Every region of A, joined with its most similar region of B. Turn B and see what holds.",
  unavailable: () => null,

  create(/** @type {import("../tabs.js").App} */ app) {
    const options = { topK: FIRST_LINES, mutualOnly: true, minScore: -1 };
    /** @type {import("../vectors.js").Match[]} */
    let matches = [];
    /** @type {import("../vectors.js").Match[]} */
    let selected = [];
    /** @type {unknown[]} */
    let matched = [];
    let pointed = -1;
    let wanted = FIRST_LINES;

    const count = h("p", { class: "soft", role: "status" });
    const list = h("ol", { class: "ranking long", tabindex: 0, "aria-label": "Matches by row and column, the best first" });
    const histogram = svg("svg", { class: "histogram", "aria-hidden": "true", preserveAspectRatio: "none" });
    const topK = slider({ label: "Lines", min: 1, max: 100, value: FIRST_LINES }, String, (value) => {
      wanted = value;
      change({ topK: value });
    });
    const minScore = slider(
      { label: "Least score", min: -1, max: 1, step: 0.005, value: -1 },
      (value) => value.toFixed(3),
      (value) => change({ minScore: value }),
    );
    const mutual = tick("Mutual matches only", options.mutualOnly, (mutualOnly) => change({ mutualOnly }));
    const scores = h("div", { class: "scores" }, histogram, minScore.element);
    const controls = [topK.element, scores, mutual, count, list];

    function change(/** @type {Partial<typeof options>} */ changes) {
      Object.assign(options, changes);
      pointed = -1;
      app.changed();
    }

    /** Match anew where a picture is new, and fit the sliders to what there is. */
    function refresh() {
      const { a, b } = app.pictures;
      if (matched[0] === a && matched[1] === b) return;
      matched = [a, b];
      matches = matchRegions(a.map, b.map);
      topK.input.max = String(matches.length);
      topK.input.value = String(wanted);
      options.topK = topK.input.valueAsNumber;
      const [low, high] = range(matches.map(({ score }) => score));
      minScore.input.min = (Math.floor(low * 200) / 200).toFixed(3);
      minScore.input.max = (Math.floor(high * 200) / 200).toFixed(3);
      minScore.input.value = minScore.input.min;
      options.minScore = minScore.input.valueAsNumber;
      [topK, minScore].forEach(({ describe }) => describe());
      drawHistogram();
    }

    /** Show over the slider how many matches have which score. */
    function drawHistogram() {
      const [low, high] = [Number(minScore.input.min), Number(minScore.input.max) + 0.005];
      const bins = new Array(BINS).fill(0);
      for (const { score } of matches) bins[Math.min(BINS - 1, Math.floor(((score - low) / (high - low)) * BINS))]++;
      const highest = Math.max(...bins);
      histogram.setAttribute("viewBox", `0 0 ${BINS} ${highest}`);
      histogram.replaceChildren(
        ...bins.map((n, x) => svg("rect", { x: x + 0.1, y: highest - n, width: 0.8, height: n })),
      );
    }

    function render() {
      refresh();
      selected = selectMatches(matches, options);
      const ends = range(selected.map(({ score }) => score));
      const isOn = (/** @type {any} */ match) => touches(match, app.state.at);
      for (const side of app.sides) {
        app.panels[side].paint(null);
        app.panels[side].scale(selected.length ? ends : null, "score");
      }
      const near = pointed >= 0 ? [selected[pointed]] : app.state.isPointed ? selected.filter(isOn) : [];
      app.panels.a.mark(near.map(({ source }) => ({ region: source, kind: "query" })));
      app.panels.b.mark(near.map(({ target }) => ({ region: target, kind: "best" })));
      app.draw(selected.map((match) => line(match, ends, near)), point);
      tell(near);
    }

    /** Tell whether a match begins or ends at a place. */
    function touches(
      /** @type {import("../vectors.js").Match} */ { source, target },
      /** @type {import("../tabs.js").Place} */ { side, region },
    ) {
      return (side === "a" ? source : target) === region;
    }

    /** Give a match as a line from picture to picture, in their pixels. */
    function line(
      /** @type {import("../vectors.js").Match} */ match,
      /** @type {[number, number]} */ [low, high],
      /** @type {import("../vectors.js").Match[]} */ near,
    ) {
      const colour = viridis(0.25 + 0.75 * ((match.score - low) / (high - low || 1))).map(Math.round);
      return {
        from: centerOf(app.pictures.a, match.source),
        to: centerOf(app.pictures.b, match.target),
        colour: `rgb(${colour.join(" ")})`,
        weight: near.length === 0 ? "" : near.includes(match) ? "near" : "far",
      };
    }

    /** Light one match, -1 for none. */
    function point(/** @type {number} */ index) {
      if (pointed === index) return;
      pointed = index;
      app.changed();
    }

    function tell(/** @type {import("../vectors.js").Match[]} */ near) {
      count.textContent = `${selected.length} of ${matches.length} matches, ${selected.filter(({ mutual }) => mutual).length} mutual`;
      if (list.dataset.shown !== JSON.stringify(selected)) fill();
      [...list.children].forEach((row, i) => row.classList.toggle("near", near.includes(selected[i])));
      const [match] = near;
      app.describe(match ? `${words(match)}, cosine ${match.score.toFixed(3)}.` : `${selected.length} lines.`);
    }

    function words(/** @type {import("../vectors.js").Match} */ { source, target }) {
      return `A ${positionOf(app.pictures.a, source)} → B ${positionOf(app.pictures.b, target)}`;
    }

    /** Name a match in little room. */
    function briefly(/** @type {import("../vectors.js").Match} */ { source, target }) {
      const [from, to] = [source, target].map((region, i) => rowAndColumn(region, app.pictures[app.sides[i]].map.grid));
      return `A ${from[0] + 1}, ${from[1] + 1} → B ${to[0] + 1}, ${to[1] + 1}`;
    }

    /** Write the list anew. */
    function fill() {
      list.dataset.shown = JSON.stringify(selected);
      list.replaceChildren(
        ...selected.map((match, index) =>
          h(
            "li",
            { pointerenter: () => point(index), pointerleave: () => point(-1) },
            h("span", { title: words(match) }, briefly(match)),
            h("b", {}, match.score.toFixed(3)),
          ),
        ),
      );
    }

    return {
      controls,
      render,
      snippet: () => correspondenceSnippet(app, options),
      table: () => [
        ["source", "target", "score", "mutual"],
        ...selected.map(({ source, target, score, mutual }) => [source, target, score.toFixed(6), mutual]),
      ],
    };
  },
};
