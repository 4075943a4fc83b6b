/**
 * Calls of the service: what the page asks for, and how it is refused.
 */
import { decodeHalfs, normalizeRows, visibleRegions } from "./vectors.js";

export const BASE = new URL(".", document.baseURI).href.replace(/\/$/, "");
/* Where the service is, also when it stands behind a path of another server. */

const KEY = "esvit-key";
/* Where the browser keeps the service's key, until its tab is closed. */

const TRIES = 4;
/* How often a call is made that is answered "too much is under way". */

/** Why a picture or a call was not accepted, in words for people. */
export class Refusal extends Error {
  /** @param {string} message @param {string} [code] the service's code, none if it did not answer */
  constructor(message, code = "") {
    super(message);
    this.code = code;
  }
}

/** Tell whether the service was given a key. */
export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/** Use a key from now on. */
export function setKey(/** @type {string} */ key) {
  sessionStorage.setItem(KEY, key);
}

/** Ask what is served. */
export async function fetchInfo() {
  return (await call("/info", { method: "GET" })).json();
}

/** Fetch a shipped picture or any other file of the service. */
export async function fetchFile(/** @type {string} */ path) {
  return (await call(path, { method: "GET" })).blob();
}

/**
 * Fetch a picture's region map: once a picture, half precision, everything after is computed here.
 * @param {Blob} file @param {string} fit
 */
export async function fetchRegions(file, fit) {
  const started = performance.now();
  const response = await post("/regions", file, { fit, encoding_format: "base64_f16" });
  const answer = await response.json();
  const [image] = answer.images;
  const values = decodeHalfs(image.regions);
  const length = values.length / image.boxes.length;
  return {
    width: image.width,
    height: image.height,
    boxes: /** @type {number[][]} */ (image.boxes),
    milliseconds: performance.now() - started,
    map: {
      features: normalizeRows(values, length), // rounding to half precision moved the lengths
      length,
      grid: /** @type {[number, number]} */ (answer.grid),
      visible: visibleRegions(image.boxes),
    },
  };
}

/** Fetch a picture's region features as a `.npy` file, in full precision. */
export async function fetchRegionsFile(/** @type {Blob} */ file, /** @type {string} */ fit) {
  return (await post("/regions", file, { fit }, "application/x-npy")).blob();
}

/**
 * Fetch a picture's attention: heads x L x L, every region asking every other.
 * @param {Blob} file @param {string} fit
 */
export async function fetchAttention(file, fit) {
  const options = { fit, head: "all", query: "all", encoding_format: "base64_f16" };
  const answer = await (await post("/attention", file, options)).json();
  return { heads: answer.num_heads, values: decodeHalfs(answer.images[0].attention) };
}

/** Send a picture as it is; the service looks at its bytes, not at what the browser calls it. */
function post(
  /** @type {string} */ path,
  /** @type {Blob} */ file,
  /** @type {Record<string, string>} */ options,
  accept = "application/json",
) {
  const headers = { "content-type": "application/octet-stream", accept };
  return call(`${path}?${new URLSearchParams(options)}`, { method: "POST", body: file, headers });
}

/** Make a call, again where the service says that too much is under way; throw its refusal. */
export async function call(/** @type {string} */ path, /** @type {RequestInit} */ { headers = {}, ...request }) {
  const key = sessionStorage.getItem(KEY);
  const all = key === null ? headers : { ...headers, "x-api-key": key };
  for (let attempt = 1; ; attempt++) {
    const response = await fetch(BASE + path, { ...request, headers: all }).catch(() => {
      throw new Refusal("The service does not answer. Is it still running?");
    });
    if (response.ok) return response;
    if (![429, 503].includes(response.status) || attempt === TRIES) throw await refusal(response);
    const seconds = Number(response.headers.get("retry-after")) || attempt;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  }
}

/** Read a refusal; what stands between page and service may answer in another form. */
async function refusal(/** @type {Response} */ response) {
  const body = await response.json().catch(() => ({}));
  const { code = "", message = response.statusText || `status ${response.status}` } = body.error ?? {};
  return new Refusal(message[0].toUpperCase() + message.slice(1), code);
}
