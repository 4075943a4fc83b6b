/**
 * Region features and what is computed of them: cosines, best matches, the choice among matches.
 *
 * The rules are those of the service's `/correspond` (`service/correspond.py`), so that what lights
 * up here is what a program is answered. Letters: L regions of a picture, S of the source, T of the
 * target, C features.
 *
 * @typedef {object} RegionMap
 * @property {Float32Array} features  L x C, each row of length one
 * @property {number} length  C
 * @property {[number, number]} grid  rows and columns, their product is L
 * @property {boolean[]} visible  which regions lie on the picture, not in a border
 *
 * @typedef {object} Match
 * @property {number} source  index of a region
 * @property {number} target  index of its most similar region in the other picture
 * @property {number} score  their cosine
 * @property {boolean} mutual  whether the target's own best match leads back
 */

/** Give the number that sixteen bits hold (IEEE 754 half precision). */
export function halfToNumber(/** @type {number} */ bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Read base64 of little-endian float16, as `encoding_format=base64_f16` writes it. */
export function decodeHalfs(/** @type {string} */ text) {
  const bytes = atob(text);
  const values = new Float32Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++) {
    values[i] = halfToNumber(bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8));
  }
  return values;
}

/** Divide every row of C numbers by its length, in place; a zero row stays zero. */
export function normalizeRows(/** @type {Float32Array} */ values, /** @type {number} */ length) {
  for (let start = 0; start < values.length; start += length) {
    let square = 0;
    for (let i = start; i < start + length; i++) square += values[i] ** 2;
    const norm = Math.max(Math.sqrt(square), 1e-12);
    for (let i = start; i < start + length; i++) values[i] /= norm;
  }
  return values;
}

/**
 * Tell which regions count as lying on the picture: a row or column does if the picture fills at
 * least half of what it fills of the best one.
 * @param {number[][]} boxes  L boxes left, top, right, bottom, cut at the picture's edge
 */
export function visibleRegions(boxes) {
  const widths = boxes.map(([left, , right]) => right - left);
  const heights = boxes.map(([, top, , bottom]) => bottom - top);
  const [widest, highest] = [Math.max(...widths), Math.max(...heights)];
  return boxes.map((_, i) => widths[i] >= widest / 2 - 1e-9 && heights[i] >= highest / 2 - 1e-9);
}

/**
 * Give the cosine of one region to every region of a map; NaN where a region is not visible.
 * @param {RegionMap} from @param {number} region @param {RegionMap} to
 */
export function cosinesOf(from, region, to) {
  const C = from.length;
  const query = from.features.subarray(region * C, region * C + C);
  return Float32Array.from(to.visible, (isVisible, other) => {
    if (!isVisible) return NaN;
    let dot = 0;
    for (let i = 0, j = other * C; i < C; i++, j++) dot += query[i] * to.features[j];
    return dot;
  });
}

/** Give the index of the largest value, the first of equals, -1 where all are NaN. */
export function hottest(/** @type {ArrayLike<number>} */ values) {
  let best = -1;
  for (let i = 0; i < values.length; i++) {
    if (!Number.isNaN(values[i]) && (best < 0 || values[i] > values[best])) best = i;
  }
  return best;
}

/**
 * Match every visible region of the source with its most similar region of the target.
 * @param {RegionMap} source @param {RegionMap} target
 * @returns {Match[]}
 */
export function matchRegions(source, target) {
  const back = target.visible.map((isVisible, region) =>
    isVisible ? hottest(cosinesOf(target, region, source)) : -1,
  );
  return source.visible.flatMap((isVisible, region) => {
    if (!isVisible) return [];
    const cosines = cosinesOf(source, region, target);
    const best = hottest(cosines);
    return [{ source: region, target: best, score: cosines[best], mutual: back[best] === region }];
  });
}

/**
 * Keep what was asked for, the highest scores first.
 * @param {Match[]} matches
 * @param {{topK: number, mutualOnly: boolean, minScore: number}} options
 */
export function selectMatches(matches, { topK, mutualOnly, minScore }) {
  return matches
    .filter((match) => match.score >= minScore && (match.mutual || !mutualOnly))
    .sort((one, other) => other.score - one.score)
    .slice(0, topK);
}

/** Give a region's row and column. */
export function rowAndColumn(/** @type {number} */ region, /** @type {[number, number]} */ grid) {
  return [Math.floor(region / grid[1]), region % grid[1]];
}

/** Tell whether two regions are one, or touch, corners included. */
export function areNeighbours(
  /** @type {number} */ one,
  /** @type {number} */ other,
  /** @type {[number, number]} */ grid,
) {
  const [row, column] = rowAndColumn(one, grid);
  const [otherRow, otherColumn] = rowAndColumn(other, grid);
  return Math.abs(row - otherRow) <= 1 && Math.abs(column - otherColumn) <= 1;
}
