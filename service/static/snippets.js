/**
 * What is on the screen as a program: for curl, and for Python with the service's client.
 *
 * The programs need nothing of this page: shipped pictures are fetched from the service, changed
 * ones are changed by Pillow.
 *
 * @typedef {import("./tabs.js").App} App
 * @typedef {import("./pictures.js").Picture} Picture
 */
import { BASE, hasKey } from "./api.js";
import { SAMPLES, centerOf, fileName } from "./pictures.js";
import { rowAndColumn } from "./vectors.js";

const PILLOW = {
  flip: () => "ImageOps.mirror(picture)",
  turn: () => "picture.transpose(Image.Transpose.ROTATE_270)",
  crop: (/** @type {any} */ { box }) => `picture.crop((${box.join(", ")}))`,
};

/** Similarity: the map of the region that asks; curl is answered with its best match. */
export function similaritySnippet(/** @type {App} */ app) {
  const { at, fit } = app.state;
  const [asked, searched] = at.side === "a" ? [app.pictures.a, app.pictures.b] : [app.pictures.b, app.pictures.a];
  const [x, y] = centerOf(asked, at.region).map((value) => value.toFixed(1));
  const [row, column] = rowAndColumn(at.region, asked.map.grid);
  return {
    curl: `${curlFiles(app)}${curl()} -F source=@${quoted(asked)} -F target=@${quoted(searched)} \\
     -F fit=${fit} -F 'points=[[${x}, ${y}]]' \\
     ${BASE}/correspond`,
    python: `${pythonRegions(app, { asked, searched })}cosines = searched @ asked[${row}, ${column}]
${pythonRows("cosines")}print("best:", np.unravel_index(cosines.argmax(), cosines.shape), cosines.max())
`,
  };
}

/**
 * Correspondence: the matches that are drawn as lines.
 * @param {App} app @param {{topK: number, mutualOnly: boolean, minScore: number}} options
 */
export function correspondenceSnippet(app, { topK, mutualOnly, minScore }) {
  const { a, b } = app.pictures;
  // The lowest score that the slider has leaves nothing out, and half precision must not either.
  const least = Math.max(-1, minScore).toFixed(3);
  const options = { fit: app.state.fit, top_k: topK, mutual_only: mutualOnly, min_score: least };
  const fields = Object.entries(options).map(([name, value]) => `-F ${name}=${value}`).join(" ");
  return {
    curl: `${curlFiles(app)}${curl()} -F source=@${quoted(a)} -F target=@${quoted(b)} \\
     ${fields} \\
     ${BASE}/correspond`,
    python: `${pythonStart(app)}
with ${client()} as client:
    matches = client.correspond(${literal(a)}, ${literal(b)}, fit="${app.state.fit}")
order = np.argsort(-matches.score, kind="stable")
kept = [i for i in order if matches.score[i] >= ${least}${mutualOnly ? " and matches.mutual[i]" : ""}][:${topK}]
for i in kept:
    print(matches.source[i], matches.target[i], matches.score[i], matches.mutual[i])
`,
  };
}

/**
 * Attention: the map of the picture that is pointed at, drawn on it.
 * @param {App} app @param {{head: number | "mean", query: string}} options
 */
export function attentionSnippet(app, { head, query }) {
  const { at, fit } = app.state;
  const picture = app.pictures[at.side];
  const point = centerOf(picture, at.region).map((value) => value.toFixed(1)).join(", ");
  const isPooled = query === "pooled";
  return {
    curl: `${curlFiles(app)}${curl()} -F file=@${quoted(picture)} -F fit=${fit} -F head=${head} ${isPooled ? "" : `-F 'query=[${point}]' `}-F render=overlay \\
     ${BASE}/attention -o attention.png`,
    python: `${pythonStart(app)}
with ${client()} as client:
    (weights,) = client.attention(${literal(picture)}, fit="${fit}", head=${head === "mean" ? '"mean"' : head}${isPooled ? "" : `, query=(${point})`})
${pythonRows("weights")}`,
  };
}

/**
 * Components: the colours of all regions, or their segments.
 * @param {App} app @param {{show: string, k: number}} options
 */
export function componentsSnippet(app, { show, k }) {
  const { a, b } = app.pictures;
  return {
    curl: `${curlFiles(app)}${curl()} -H 'Accept: application/x-npy' -F file=@${quoted(a)} -F file=@${quoted(b)} -F fit=${app.state.fit} \\
     ${BASE}/regions -o regions.npy`,
    python: `${pythonRegions(app, { a, b })}rows = np.concatenate([a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])])
${show === "colours" ? PYTHON_COLOURS : pythonSegments(k)}`,
  };
}

const PYTHON_COLOURS = `_, strengths, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
projections = (rows - rows.mean(0)) @ directions[:3].T
peaks = projections[np.abs(projections).argmax(0), range(3)]
projections *= np.sign(peaks)  # a direction has no sign of its own
low, high = projections.min(0), projections.max(0)
colours = np.split((projections - low) / (high - low), [a.shape[0] * a.shape[1]])
print(colours[0].reshape(*a.shape[:2], 3).round(2))  # red, green, blue of A
print("shares of the variance:", (strengths[:3] ** 2 / (strengths**2).sum()).round(3))
`;

function pythonSegments(/** @type {number} */ k) {
  return `centres = [rows[((rows - rows.mean(0)) ** 2).sum(1).argmax()]]
while len(centres) < ${k}:  # the row farthest from all centres so far
    gaps = np.min([((rows - centre) ** 2).sum(1) for centre in centres], axis=0)
    centres.append(rows[gaps.argmax()])
for _ in range(100):
    groups = np.argmin([((rows - centre) ** 2).sum(1) for centre in centres], axis=0)
    centres = [rows[groups == n].mean(0) if (groups == n).any() else centres[n] for n in range(${k})]
print(groups[: a.shape[0] * a.shape[1]].reshape(a.shape[:2]))  # of A
`;
}

/** Give the word that calls; a key is read from the environment, never shown. */
function curl() {
  return hasKey() ? 'curl -H "X-API-Key: $ESVIT_KEY"' : "curl";
}

/** Give what calls in Python. */
function client() {
  return `Client("${BASE}"${hasKey() ? ', api_key=os.environ["ESVIT_KEY"]' : ""})`;
}

/** Give the beginning of a program. */
function pythonStart(/** @type {App} */ app) {
  return `# In a checkout of the project, with its environment
${hasKey() ? "import os\n" : ""}${sampleNames(app).length ? "from urllib.request import urlretrieve\n" : ""}
import numpy as np
${changedOnes(app).length ? "from PIL import Image, ImageOps\n" : ""}from service.client import Client
${pythonFiles(app)}`;
}

/**
 * Give the beginning of a program that computes with the regions of two pictures.
 * @param {App} app @param {Record<string, Picture>} pictures  by the names of their variables
 */
function pythonRegions(app, pictures) {
  const lines = Object.entries(pictures).map(
    ([name, picture]) => `    ${name} = client.regions(${literal(picture)}, fit="${app.state.fit}")\n`,
  );
  const names = Object.keys(pictures);
  const maps = names.map((name) => `${name}.features.reshape(*${name}.grid, -1)`);
  return `${pythonStart(app)}
with ${client()} as client:
${lines.join("")}${names.join(", ")} = ${maps.join(", ")}  # rows x columns x features
`;
}

/** Give the lines that print a map, a row of regions a line. */
function pythonRows(/** @type {string} */ name) {
  return `for row in ${name}:
    print(*(f"{value:.3f}" for value in row))
`;
}

/** Give the lines that fetch shipped pictures, and say how to get changed ones. */
function curlFiles(/** @type {App} */ app) {
  const lines = sampleNames(app).map((name) => `curl -sO ${BASE}/photographs/${name}\n`);
  const notes = changedOnes(app).map((picture) => `# ${fileName(picture)}: by “Save as file” below picture ${sideOf(app, picture)}\n`);
  return [...lines, ...notes].join("");
}

/** Give the lines that fetch shipped pictures and make changed ones. */
function pythonFiles(/** @type {App} */ app) {
  const names = sampleNames(app);
  let lines = "";
  if (names.length > 0) {
    lines += `
for name in ${JSON.stringify(names)}:
    urlretrieve(f"${BASE}/photographs/{name}", name)
`;
  }
  for (const picture of changedOnes(app)) {
    lines += `
picture = ImageOps.exif_transpose(Image.open(${JSON.stringify(picture.name)})).convert("RGB")
${picture.changes.map((change) => `picture = ${PILLOW[change.kind](change)}\n`).join("")}picture.save(${literal(picture)})
`;
  }
  return lines;
}

function changedOnes(/** @type {App} */ app) {
  return shown(app).filter(({ changes }) => changes.length > 0);
}

function shown(/** @type {App} */ app) {
  return app.sides.map((side) => app.pictures[side]);
}

function sideOf(/** @type {App} */ app, /** @type {Picture} */ picture) {
  return picture === app.pictures.a ? "A" : "B";
}

/** Give the names of the pictures on the screen that come along with the service. */
function sampleNames(/** @type {App} */ app) {
  const names = shown(app).filter(({ isSample }) => isSample).map(({ name }) => name);
  return SAMPLES.filter((name) => names.includes(name));
}

/** Give a file's name as Python writes it. */
function literal(/** @type {Picture} */ picture) {
  return JSON.stringify(fileName(picture));
}

/** Give a file's name as a shell takes it. */
function quoted(/** @type {Picture} */ picture) {
  const name = fileName(picture);
  return /^[\w.-]+$/.test(name) ? name : `'${name.replaceAll("'", String.raw`'\''`)}'`;
}
