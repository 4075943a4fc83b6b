/**
 * Pictures: from a file to what the page shows and computes with, turned and cropped on the way.
 *
 * @typedef {{kind: "flip"} | {kind: "turn"} | {kind: "crop", box: [number, number, number, number]}} Change
 *     mirrored left to right; turned a quarter clockwise; cut to left, top, right, bottom in pixels
 *
 * @typedef {object} Picture
 * @property {string} name  of the file
 * @property {Blob} file  what the service was sent
 * @property {Original} original  before any change
 * @property {Change[]} changes  made to the original, in this order
 * @property {boolean} isSample  whether it comes along with the service
 * @property {string} url  where the browser has it; to be released
 * @property {number} width  of the upright picture in pixels
 * @property {number} height
 * @property {number[][]} boxes  each region's left, top, right, bottom in pixels
 * @property {View} view  where the whole grid lies
 * @property {import("./vectors.js").RegionMap} map
 * @property {number} milliseconds  from sending the file to having the regions
 * @property {{heads: number, values: Float32Array} | null} attention  once it was asked for
 *
 * @typedef {{left: number, top: number, cellWidth: number, cellHeight: number}} View  in pixels
 */
import { Refusal, fetchAttention, fetchFile, fetchRegions } from "./api.js";
import { rowAndColumn } from "./vectors.js";

export const SAMPLES = ["cat.jpg", "coffee.jpg", "rocket.jpg"];

const MANY_PIXELS = 1_500_000;
/* Changed pictures with more are sent as JPEG, others as PNG, which loses nothing. */

/**
 * @typedef {{name: string, file: Blob, isSample: boolean}} Original  a file as it was chosen
 */

/** Fetch a picture that comes along. */
export async function fetchSample(/** @type {string} */ name) {
  return { name, file: await fetchFile(`/photographs/${name}`), isSample: true };
}

/**
 * Make a picture of a file: change it, have its regions computed, keep it for showing.
 * @param {Original} original @param {Change[]} changes
 * @param {{fit: string, maxBytes: number}} options
 * @returns {Promise<Picture>}
 */
export async function loadPicture(original, changes, { fit, maxBytes }) {
  const file = changes.length ? await changed(original.file, changes) : original.file;
  if (file.size > maxBytes) {
    const megabytes = (/** @type {number} */ bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
    throw new Refusal(`The file has ${megabytes(file.size)}; at most ${megabytes(maxBytes)} are accepted`);
  }
  const regions = await fetchRegions(file, fit);
  const view = viewOf(regions.boxes, regions.map.grid);
  const url = URL.createObjectURL(file);
  const { name, isSample } = original;
  return { name, isSample, file, original, changes, url, view, ...regions, attention: null };
}

/** Have a picture's attention computed, once. */
export async function loadAttention(/** @type {Picture} */ picture, /** @type {string} */ fit) {
  picture.attention ??= await fetchAttention(picture.file, fit);
}

/**
 * Find where the whole grid lies, of which the boxes show what is inside the picture: its cells are
 * as wide as the widest box and as high as the highest.
 */
export function viewOf(/** @type {number[][]} */ boxes, /** @type {[number, number]} */ [, columns]) {
  const widths = boxes.map(([left, , right]) => right - left);
  const heights = boxes.map(([, top, , bottom]) => bottom - top);
  const [cellWidth, cellHeight] = [Math.max(...widths), Math.max(...heights)];
  const [wide, high] = [widths.indexOf(cellWidth), heights.indexOf(cellHeight)];
  return {
    left: boxes[wide][0] - (wide % columns) * cellWidth,
    top: boxes[high][1] - Math.floor(high / columns) * cellHeight,
    cellWidth,
    cellHeight,
  };
}

/** Give the visible region at a point of the picture in pixels, null where there is none. */
export function regionAt(/** @type {Picture} */ picture, /** @type {number} */ x, /** @type {number} */ y) {
  const { view, map } = picture;
  const column = Math.floor((x - view.left) / view.cellWidth);
  const row = Math.floor((y - view.top) / view.cellHeight);
  const isInside = column >= 0 && column < map.grid[1] && row >= 0 && row < map.grid[0];
  const region = row * map.grid[1] + column;
  return isInside && map.visible[region] ? region : null;
}

/** Name a region for people. */
export function positionOf(/** @type {Picture} */ { map }, /** @type {number} */ region) {
  const [row, column] = rowAndColumn(region, map.grid);
  return `row ${row + 1}, column ${column + 1}`;
}

/** Give the centre of a region's box: x, y in pixels. */
export function centerOf(/** @type {Picture} */ picture, /** @type {number} */ region) {
  const [left, top, right, bottom] = picture.boxes[region];
  return /** @type {[number, number]} */ ([(left + right) / 2, (top + bottom) / 2]);
}

/** Give the name under which a picture is saved: of a changed one, saying how it was. */
export function fileName(/** @type {Picture} */ { name, file, changes }) {
  if (changes.length === 0) return name;
  const kinds = [...new Set(changes.map(({ kind }) => kind))].join("-");
  const ending = file.type === "image/png" ? "png" : "jpg";
  return `${name.replace(/\.[^.]*$/, "")}-${kinds}.${ending}`;
}

/** Change a picture in the browser and give the file of it. */
async function changed(/** @type {Blob} */ original, /** @type {Change[]} */ changes) {
  let canvas = drawn(await bitmapOf(original));
  for (const change of changes) canvas = CHANGES[change.kind](canvas, change);
  const type = canvas.width * canvas.height > MANY_PIXELS ? "image/jpeg" : "image/png";
  return canvas.convertToBlob({ type, quality: 0.95 });
}

/** Decode a file, upright. */
async function bitmapOf(/** @type {Blob} */ file) {
  return createImageBitmap(file).catch(() => {
    throw new Refusal("This browser cannot show the picture");
  });
}

/** Put a bitmap on a canvas of its size. */
function drawn(/** @type {ImageBitmap} */ bitmap) {
  return repaint(bitmap.width, bitmap.height, (context) => context.drawImage(bitmap, 0, 0));
}

/** @type {Record<string, (canvas: OffscreenCanvas, change: any) => OffscreenCanvas>} */
const CHANGES = {
  flip: (canvas) =>
    repaint(canvas.width, canvas.height, (context) => {
      context.setTransform(-1, 0, 0, 1, canvas.width, 0);
      context.drawImage(canvas, 0, 0);
    }),
  turn: (canvas) =>
    repaint(canvas.height, canvas.width, (context) => {
      context.setTransform(0, 1, -1, 0, canvas.height, 0);
      context.drawImage(canvas, 0, 0);
    }),
  crop: (canvas, { box: [left, top, right, bottom] }) =>
    repaint(right - left, bottom - top, (context) => context.drawImage(canvas, -left, -top)),
};

/** Make a canvas and draw on it. */
function repaint(
  /** @type {number} */ width,
  /** @type {number} */ height,
  /** @type {(context: OffscreenCanvasRenderingContext2D) => void} */ draw,
) {
  const canvas = new OffscreenCanvas(width, height);
  draw(/** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d")));
  return canvas;
}
