/** What is on the screen as files: the view as PNG, region features as `.npy`, tables as CSV. */
import { fetchRegionsFile } from "./api.js";
import { fileName } from "./pictures.js";

const HEIGHT = 640;
const GAP = 16;
/* Of the pictures in a saved view, in pixels. */

/** Hand a file to the browser's downloads. */
export function save(/** @type {Blob} */ blob, /** @type {string} */ name) {
  const url = URL.createObjectURL(blob);
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the browser reads it after the click
}

/** Save a table. */
export function saveTable(/** @type {unknown[][]} */ rows, /** @type {string} */ name) {
  save(new Blob([rows.map((row) => row.join(",") + "\n").join("")], { type: "text/csv" }), name);
}

/** Save a picture's region features in full precision, as the service writes them. */
export async function saveRegions(
  /** @type {import("./pictures.js").Picture} */ picture,
  /** @type {string} */ fit,
) {
  const name = fileName(picture).replace(/\.[^.]*$/, "");
  save(await fetchRegionsFile(picture.file, fit), `${name}-regions.npy`);
}

/**
 * Save both pictures as they are shown, with their maps, marks and lines.
 * @param {import("./tabs.js").App} app @param {import("./tabs.js").Line[]} lines
 */
export async function saveView(app, lines) {
  const scales = app.bySide((side) => HEIGHT / app.pictures[side].height);
  const widths = app.bySide((side) => Math.round(app.pictures[side].width * scales[side]));
  const starts = { a: 0, b: widths.a + GAP };
  const canvas = new OffscreenCanvas(starts.b + widths.b, HEIGHT);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  for (const side of app.sides) {
    context.save();
    context.beginPath();
    context.rect(starts[side], 0, widths[side], HEIGHT);
    context.clip();
    context.translate(starts[side], 0);
    context.scale(widths[side] / app.pictures[side].width, scales[side]);
    drawPanel(context, app.panels[side], 1 / scales[side]);
    context.restore();
  }
  for (const { from, to, colour, weight } of lines) {
    context.strokeStyle = colour;
    context.lineWidth = weight === "near" ? 4 : 2;
    context.globalAlpha = weight === "far" ? 0.2 : 1;
    context.beginPath();
    context.moveTo(starts.a + from[0] * scales.a, from[1] * scales.a);
    context.lineTo(starts.b + to[0] * scales.b, to[1] * scales.b);
    context.stroke();
  }
  save(await canvas.convertToBlob(), "esvit.png");
}

/** Draw a panel in its picture's pixels; `pixel` is how many of them one pixel of the file is. */
function drawPanel(
  /** @type {OffscreenCanvasRenderingContext2D} */ context,
  /** @type {import("./panel.js").Panel} */ panel,
  /** @type {number} */ pixel,
) {
  const { view, map, width, height, boxes } = panel.shown();
  context.drawImage(panel.image, 0, 0, width, height);
  if (!panel.canvas.hidden) {
    context.globalAlpha = Number(panel.canvas.style.opacity);
    context.imageSmoothingEnabled = !panel.canvas.classList.contains("squares");
    const size = [view.cellWidth * map.grid[1], view.cellHeight * map.grid[0]];
    context.drawImage(panel.canvas, view.left, view.top, size[0], size[1]);
    context.globalAlpha = 1;
  }
  for (const { region, kind } of panel.marked) {
    const [left, top, right, bottom] = boxes[region];
    context.lineWidth = 4 * pixel;
    context.strokeStyle = kind === "query" ? "#ff5a36" : "#ffffff";
    context.strokeRect(left, top, right - left, bottom - top);
  }
}
