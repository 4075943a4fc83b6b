/**
 * The service's gallery: calls, and sending many files.
 *
 * @typedef {{id: string, name: string, width: number, height: number, score?: number,
 *     mutual?: number, regions?: number, box?: number[]}} Shown  a picture of the gallery, perhaps found
 * @typedef {{query: {id: string} | {file: Blob}, box: number[] | null, fit: string}} Look
 */
import { BASE, Refusal, call, fetchFile, hasKey } from "./api.js";

const FILES = 8;
/* So many are sent in one call. */

const SHARE = 0.9;
/* Of the bytes that a call may have, for the files in it. */

/** Give a page of the gallery: `{count, pictures, next}`. */
export async function fetchPage(/** @type {string | null} */ start) {
  const from = start ? `&start=${start}` : "";
  return (await call(`/gallery?limit=60${from}`, { method: "GET" })).json();
}

/** Search by a picture, or by the box that is given of it: pictures, best first. */
export async function search(/** @type {Look} */ { query, box, fit }) {
  /** @type {Shown[]} */
  let results;
  if ("id" in query) {
    ({ results } = await post("/gallery/similar", { id: query.id, box, limit: 40 }));
  } else {
    const options = new URLSearchParams({ fit, limit: "40", ...(box && { box: JSON.stringify(box) }) });
    const headers = { "content-type": "application/octet-stream" };
    const response = await call(`/gallery/search?${options}`, { method: "POST", body: query.file, headers });
    ({ results } = await response.json());
  }
  return results;
}

/** Look for near-duplicates of a page's pictures: `{pictures, looked_at, next}`. */
export function fetchNear(/** @type {number} */ least, /** @type {string | null} */ start) {
  return post("/gallery/duplicates", { min_score: least, start });
}

/** Forget pictures, or all of them. */
export function remove(/** @type {string[] | "all"} */ ids) {
  return post("/gallery/delete", ids === "all" ? { all: true } : { ids });
}

/** Give where a thumbnail is shown from; one that needs a key is fetched. */
export async function thumbnail(/** @type {string} */ id) {
  const path = `/gallery/thumbnails/${id}`;
  return hasKey() ? URL.createObjectURL(await fetchFile(path)) : BASE + path;
}

/**
 * Send files, a few in a call, until all are sent or `isStopped` says so.
 * @param {import("./files.js").Named[]} files
 * @param {{fit: string, maxBytes: number, isStopped: () => boolean,
 *     progress: (sent: number, added: number, refused: string[]) => void}} wires
 */
export async function send(files, { fit, maxBytes, isStopped, progress }) {
  let [sent, added] = [0, 0];
  /** @type {string[]} */
  const refused = [];
  for (const part of parts(files, SHARE * maxBytes)) {
    if (isStopped()) break;
    try {
      const { images, errors } = await sendPart(part, fit);
      added += images.filter((/** @type {any} */ image) => image && !image.known).length;
      refused.push(...errors.map((/** @type {any} */ error) => `${part[error.index].name}: ${error.message}`));
    } catch (error) {
      if (!(error instanceof Refusal) || part.length > 1 || error.code === "gallery_full") throw error;
      refused.push(`${part[0].name}: ${error.message}`); // of a single file the call itself is refused
    }
    sent += part.length;
    progress(sent, added, refused);
  }
}

async function sendPart(/** @type {import("./files.js").Named[]} */ part, /** @type {string} */ fit) {
  const form = new FormData();
  for (const { file, name } of part) form.append("file", file, name);
  form.append("names", JSON.stringify(part.map(({ name }) => name.slice(-300))));
  form.append("fit", fit);
  return (await call("/gallery/index", { method: "POST", body: form })).json();
}

/** Part files so that a call is neither too long nor too large; a file too large goes alone. */
function* parts(/** @type {import("./files.js").Named[]} */ files, /** @type {number} */ maxBytes) {
  /** @type {import("./files.js").Named[]} */
  let part = [];
  let bytes = 0;
  for (const named of files) {
    if (part.length && (part.length === FILES || bytes + named.file.size > maxBytes)) {
      yield part;
      [part, bytes] = [[], 0];
    }
    part.push(named);
    bytes += named.file.size;
  }
  if (part.length) yield part;
}

async function post(/** @type {string} */ path, /** @type {object} */ body) {
  const headers = { "content-type": "application/json" };
  return (await call(path, { method: "POST", body: JSON.stringify(body), headers })).json();
}
