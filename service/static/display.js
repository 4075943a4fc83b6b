/** The controls of how maps are drawn: made once, shown by every tab that draws maps. */
import { choice, slider } from "./dom.js";

/** @typedef {{smooth: boolean, look: string, opacity: number}} Look */

/**
 * Make the controls.
 * @param {Look} look  is changed by them
 * @param {() => void} changed
 */
export function lookControls(look, changed) {
  const change = (/** @type {Partial<Look>} */ changes) => {
    Object.assign(look, changes);
    changed();
  };
  return {
    colours: choice("Look", { viridis: "Colours", light: "Light" }, look.look, (value) => change({ look: value })),
    cells: choice("Regions", { smooth: "Smooth", squares: "Squares" }, look.smooth ? "smooth" : "squares", (value) =>
      change({ smooth: value === "smooth" }),
    ),
    strength: slider(
      { label: "Strength", min: 0, max: 1, step: 0.05, value: look.opacity },
      (value) => `${Math.round(100 * value)} %`,
      (value) => change({ opacity: value }),
    ).element,
  };
}
