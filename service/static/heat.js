/**
 * Numbers on a grid become pixels: interpolation between regions, and colours.
 */

/** @type {[number, number, number][]} */
export const VIRIDIS = [
  [68, 1, 84],
  [71, 44, 122],
  [59, 81, 139],
  [44, 113, 142],
  [33, 144, 141],
  [39, 173, 129],
  [92, 200, 99],
  [170, 220, 50],
  [253, 231, 37],
];
/* Viridis at nine even steps, as in the service's drawings: even in lightness, readable without
   colour vision. */

/** @type {[number, number, number][]} */
export const SEGMENTS = [
  [0, 114, 178],
  [230, 159, 0],
  [0, 158, 115],
  [204, 121, 167],
  [86, 180, 233],
  [213, 94, 0],
  [240, 228, 66],
  [120, 120, 120],
  [92, 58, 160],
  [150, 75, 40],
];
/* Okabe and Ito's colours for categories, told apart without colour vision, and two more. */

export const SMOOTHNESS = 12;
/* Pixels a region's side is drawn with when it is drawn smooth; the browser stretches the rest. */

/** Give the colour at a place in [0, 1] of viridis. */
export function viridis(/** @type {number} */ at) {
  const place = Math.min(Math.max(at, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[low].map((v, channel) => v + (VIRIDIS[low + 1][channel] - v) * (place - low));
}

/** Give the lowest and the highest number, NaN left out. */
export function range(/** @type {Iterable<number>} */ values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return /** @type {[number, number]} */ ([low, high]);
}

/**
 * Interpolate a grid to `factor` pixels a cell and side, by Catmull and Rom's cubics: at a cell's
 * centre the value is the cell's own. NaN counts as the lowest value.
 * @param {ArrayLike<number>} values  rows x columns
 * @param {[number, number]} grid
 * @param {number} factor
 */
export function upsample(values, [rows, columns], factor) {
  const [low] = range(Array.from(values));
  const filled = Float32Array.from(values, (value) => (Number.isNaN(value) ? low : value));
  const [width, height] = [columns * factor, rows * factor];
  const wide = new Float32Array(rows * width);
  for (let row = 0; row < rows; row++) {
    wide.set(stretch(filled.subarray(row * columns, (row + 1) * columns), factor), row * width);
  }
  const all = new Float32Array(height * width);
  const line = new Float32Array(rows);
  for (let x = 0; x < width; x++) {
    for (let row = 0; row < rows; row++) line[row] = wide[row * width + x];
    const drawn = stretch(line, factor);
    for (let y = 0; y < height; y++) all[y * width + x] = drawn[y];
  }
  return all;
}

/** Interpolate a line to `factor` values a place; beyond the ends it stays what it is there. */
function stretch(/** @type {Float32Array} */ line, /** @type {number} */ factor) {
  const last = line.length - 1;
  const drawn = new Float32Array(line.length * factor);
  for (let i = 0; i < drawn.length; i++) {
    const place = Math.min(Math.max((i + 0.5) / factor - 0.5, 0), last);
    const cell = Math.floor(place);
    const t = place - cell;
    const a = line[Math.max(cell - 1, 0)];
    const b = line[cell];
    const c = line[Math.min(cell + 1, last)];
    const d = line[Math.min(cell + 2, last)];
    drawn[i] = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
  }
  return drawn;
}

/** @type {Record<string, Uint32Array>} */
const LOOKS = {
  viridis: steps((heat) => [...viridis(heat), 255]),
  light: steps((heat) => [8, 10, 14, 235 * (1 - heat) ** 1.5]),
};
/* What a heat of 0 to 255 looks like, four bytes in one number: in colours, or as light in the dark. */

function steps(/** @type {(heat: number) => number[]} */ colour) {
  const bytes = Array.from({ length: 256 }, (_, i) => colour(i / 255)).flat();
  return new Uint32Array(Uint8ClampedArray.from(bytes).buffer);
}

/**
 * Draw a map of numbers.
 * @param {ArrayLike<number>} values  rows x columns, NaN where nothing is drawn
 * @param {[number, number]} grid
 * @param {{ends: [number, number], smooth: boolean, look: string}} options  the numbers drawn
 *     coldest and hottest; look: one of LOOKS
 */
export function drawHeat(values, grid, { ends: [low, high], smooth, look }) {
  const factor = smooth ? SMOOTHNESS : 1;
  const numbers = smooth ? upsample(values, grid, factor) : Float32Array.from(values);
  const image = new ImageData(grid[1] * factor, grid[0] * factor);
  const pixels = new Uint32Array(image.data.buffer);
  const scale = 255 / Math.max(high - low, 1e-12);
  for (let i = 0; i < numbers.length; i++) {
    if (Number.isNaN(numbers[i])) continue;
    const heat = Math.min(Math.max(Math.round((numbers[i] - low) * scale), 0), 255);
    pixels[i] = LOOKS[look][heat];
  }
  return image;
}

/**
 * Draw three maps as red, green and blue.
 * @param {ArrayLike<number>[]} channels  each rows x columns, of [0, 1]
 * @param {[number, number]} grid @param {boolean} smooth
 */
export function drawColours(channels, grid, smooth) {
  const factor = smooth ? SMOOTHNESS : 1;
  const drawn = channels.map((channel) =>
    smooth ? upsample(channel, grid, factor) : Float32Array.from(channel),
  );
  const image = new ImageData(grid[1] * factor, grid[0] * factor);
  drawn[0].forEach((_, i) => {
    image.data.set([...drawn.map((channel) => 255 * channel[i]), 255], 4 * i);
  });
  return image;
}

/**
 * Draw each region in its segment's colour, none where it belongs to none (-1).
 * @param {ArrayLike<number>} groups  rows x columns @param {[number, number]} grid
 */
export function drawSegments(groups, grid) {
  const image = new ImageData(grid[1], grid[0]);
  Array.from(groups).forEach((group, i) => {
    if (group >= 0) image.data.set([...SEGMENTS[group % SEGMENTS.length], 255], 4 * i);
  });
  return image;
}
