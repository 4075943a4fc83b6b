/** Lines from picture to picture, over everything: in SVG, so that each can be pointed at. */
import { svg } from "./dom.js";

/**
 * Draw lines, instead of those that were.
 * @param {SVGElement} layer  lies over both pictures
 * @param {import("./tabs.js").App["panels"]} panels
 * @param {import("./tabs.js").Line[]} lines
 * @param {(index: number) => void} point  is told which line the pointer is on, -1 for none
 */
export function drawLines(layer, panels, lines, point) {
  if (layer.childElementCount !== lines.length) layer.replaceChildren(...lines.map((_, i) => made(i, point)));
  lines.forEach(({ from, to, colour, weight }, i) => {
    const group = layer.children[i];
    const [x1, y1] = panels.a.placeOn(from, layer);
    const [x2, y2] = panels.b.placeOn(to, layer);
    group.setAttribute("class", `line ${weight}`);
    /** @type {SVGElement} */ (group).style.setProperty("--colour", colour);
    for (const path of group.querySelectorAll("path")) path.setAttribute("d", `M${x1} ${y1}L${x2} ${y2}`);
    [[x1, y1], [x2, y2]].forEach(([cx, cy], end) => {
      const dot = group.querySelectorAll("circle")[end];
      dot.setAttribute("cx", String(cx));
      dot.setAttribute("cy", String(cy));
    });
  });
}

/** Make a line: a wide one that catches the pointer, a dark edge, the colour, and its ends. */
function made(/** @type {number} */ index, /** @type {(index: number) => void} */ point) {
  const group = svg("g", { pointerenter: () => point(index), pointerleave: () => point(-1) });
  const parts = ["catch", "edge", "ink"].map((name) => svg("path", { class: name }));
  group.append(...parts, svg("circle", { r: 3.5 }), svg("circle", { r: 3.5 }));
  return group;
}
