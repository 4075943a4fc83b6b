/**
 * Many regions seen at once: principal components as colours, k-means as segments.
 *
 * Letters: N regions (those of both pictures together), C features.
 */

const STEPS = 300;
/** Iterations after which a component is taken as it is; near-equal ones converge slowly. */

const TOLERANCE = 1e-9;
/** Change of a unit vector below which it has converged. */

/**
 * Give the principal components of N rows.
 *
 * The N x N Gram matrix of the centred rows is small, so its leading eigenvectors, scaled by the
 * roots of their eigenvalues, give the projections without ever forming a C x C covariance. Each
 * comes by power iteration and is then taken out of the matrix. A component's sign is chosen so that
 * its largest value is positive: the same pictures always have the same colours.
 * @param {Float32Array} values  N x C
 * @param {number} length  C
 * @param {number} count  how many components
 * @returns {{projections: Float64Array[], shares: number[]}}  for each component N projections, and
 *     its share of the variance
 */
export function principalComponents(values, length, count) {
  const gram = centredGram(values, length);
  const N = values.length / length;
  let total = 0;
  for (let i = 0; i < N; i++) total += gram[i * N + i];
  const components = Array.from({ length: count }, () => takeLeading(gram, N));
  return {
    projections: components.map(({ vector, value }) => vector.map((v) => v * Math.sqrt(value))),
    shares: components.map(({ value }) => (total > 0 ? value / total : 0)),
  };
}

/** Give the N x N dot products of rows whose mean row was taken off. */
function centredGram(/** @type {Float32Array} */ values, /** @type {number} */ length) {
  const N = values.length / length;
  const mean = new Float64Array(length);
  for (let i = 0; i < values.length; i++) mean[i % length] += values[i] / N;
  const centred = Float64Array.from(values, (value, i) => value - mean[i % length]);
  const gram = new Float64Array(N * N);
  for (let i = 0; i < N; i++) {
    for (let j = i; j < N; j++) {
      let dot = 0;
      for (let c = 0; c < length; c++) dot += centred[i * length + c] * centred[j * length + c];
      gram[i * N + j] = gram[j * N + i] = dot;
    }
  }
  return gram;
}

/** Find a matrix's leading eigenvector and take it out of the matrix, which is changed. */
function takeLeading(/** @type {Float64Array} */ matrix, /** @type {number} */ N) {
  // The longest column has a part of every eigenvector that matters, and is never orthogonal to all.
  const lengths = Array.from({ length: N }, (_, i) => matrix[i * N + i]);
  const longest = lengths.indexOf(Math.max(...lengths));
  let vector = unit(matrix.slice(longest * N, longest * N + N));
  for (let step = 0; step < STEPS; step++) {
    const next = unit(multiply(matrix, vector));
    const change = Math.hypot(...next.map((v, i) => v - vector[i]));
    vector = next;
    if (change < TOLERANCE) break;
  }
  const image = multiply(matrix, vector);
  const value = Math.max(0, vector.reduce((sum, v, i) => sum + v * image[i], 0));
  for (let i = 0; i < N; i++) {
    for (let j = 0; j < N; j++) matrix[i * N + j] -= value * vector[i] * vector[j];
  }
  const peak = vector.reduce((best, v) => (Math.abs(v) > Math.abs(best) ? v : best), 0);
  return { vector: peak < 0 ? vector.map((v) => -v) : vector, value };
}

/** Multiply a square matrix with a vector. */
function multiply(/** @type {Float64Array} */ matrix, /** @type {Float64Array} */ vector) {
  const N = vector.length;
  return vector.map((_, i) => {
    let sum = 0;
    for (let j = 0; j < N; j++) sum += matrix[i * N + j] * vector[j];
    return sum;
  });
}

/** Scale a vector to length one; zero stays zero. */
function unit(/** @type {Float64Array} */ vector) {
  const norm = Math.sqrt(vector.reduce((sum, v) => sum + v * v, 0));
  return norm > 0 ? vector.map((v) => v / norm) : vector;
}

/**
 * Part N rows into k groups of least squared distance (Lloyd's iterations).
 *
 * The first centre is the row farthest from the mean, each further one the row farthest from all
 * centres so far: no chance is involved. A group that becomes empty keeps its centre.
 * @param {Float32Array} values  N x C
 * @param {number} length  C
 * @param {number} k  groups, at most N
 * @returns {Int32Array}  for each row its group, from 0
 */
export function kMeans(values, length, k) {
  const N = values.length / length;
  const rows = Array.from({ length: N }, (_, i) => values.subarray(i * length, (i + 1) * length));
  let centres = farthestRows(rows, k);
  let groups = new Int32Array(N).fill(-1);
  for (let step = 0; step < 100; step++) {
    const next = Int32Array.from(rows, (row) => nearest(row, centres));
    if (next.every((group, i) => group === groups[i])) break;
    groups = next;
    centres = centres.map((centre, group) => meanOf(rows.filter((_, i) => groups[i] === group)) ?? centre);
  }
  return groups;
}

/** Choose rows to begin with, far from each other. */
function farthestRows(/** @type {Float32Array[]} */ rows, /** @type {number} */ k) {
  const mean = /** @type {Float32Array} */ (meanOf(rows));
  const centres = [rows[indexOfLargest(rows.map((row) => distance(row, mean)))]];
  while (centres.length < k) {
    const gaps = rows.map((row) => Math.min(...centres.map((centre) => distance(row, centre))));
    centres.push(rows[indexOfLargest(gaps)]);
  }
  return centres;
}

/** Give the index of the nearest centre. */
function nearest(/** @type {Float32Array} */ row, /** @type {Float32Array[]} */ centres) {
  return indexOfLargest(centres.map((centre) => -distance(row, centre)));
}

/** Give the squared distance of two rows. */
function distance(/** @type {Float32Array} */ one, /** @type {Float32Array} */ other) {
  let sum = 0;
  for (let i = 0; i < one.length; i++) sum += (one[i] - other[i]) ** 2;
  return sum;
}

/** Give the mean of rows, null of none. */
function meanOf(/** @type {Float32Array[]} */ rows) {
  if (rows.length === 0) return null;
  const mean = new Float32Array(rows[0].length);
  for (const row of rows) for (let i = 0; i < mean.length; i++) mean[i] += row[i] / rows.length;
  return mean;
}

/** Give the index of the largest number, the first of equals. */
function indexOfLargest(/** @type {number[]} */ numbers) {
  return numbers.indexOf(Math.max(...numbers));
}
