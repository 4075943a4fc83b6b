/**
 * The tabs of the page. A further one is a file in `tabs/` and a word in the list below.
 *
 * @typedef {object} Tab
 * @property {string} id  also its address: `#id`
 * @property {string} title
 * @property {string} hint  one sentence: what to do here
 * @property {(info: any) => string | null} unavailable  why the served model has no such tab, null if
 *     it has; `info` is the answer of `/info`
 * @property {(app: App) => View} create  called once, when the tab is first opened
 *
 * @typedef {object} View
 * @property {Node[]} controls  what stands beside the pictures
 * @property {Node} [stage]  what stands in place of the two pictures
 * @property {() => void} render  show the state; at most once a frame, after `app.changed()`
 * @property {() => {curl: string, python: string}} [snippet]  what is on the screen, as code
 * @property {() => unknown[][]} [table]  what is on the screen, as rows to download
 *
 * @typedef {{side: "a" | "b", region: number}} Place
 *
 * @typedef {object} Line  from a point of A to a point of B, each in its picture's pixels
 * @property {[number, number]} from
 * @property {[number, number]} to
 * @property {string} colour
 * @property {string} weight  "near", "far" or ""
 *
 * @typedef {object} App  what a tab may use
 * @property {any} info  the answer of `/info`
 * @property {{at: Place, isPinned: boolean, isPointed: boolean, fit: string}} state  isPointed: the
 *     pointer or the keyboard is on a region now
 * @property {{a: import("./pictures.js").Picture, b: import("./pictures.js").Picture}} pictures
 * @property {{a: import("./panel.js").Panel, b: import("./panel.js").Panel}} panels
 * @property {("a" | "b")[]} sides
 * @property {import("./display.js").Look} look  how maps are drawn
 * @property {{colours: Node, cells: Node, strength: Node}} controls  of the look
 * @property {<T>(give: (side: "a" | "b") => T) => {a: T, b: T}} bySide  ask for A, then for B
 * @property {() => void} changed  the state changed: render soon
 * @property {(lines: Line[], point: (index: number) => void) => void} draw  draw lines; `point` is
 *     told which one the pointer is on, -1 for none
 * @property {(text: string) => void} describe  what is shown, in words for a screen reader
 */
import { attention } from "./tabs/attention.js";
import { components } from "./tabs/components.js";
import { correspondence } from "./tabs/correspondence.js";
import { gallery } from "./tabs/gallery.js";
import { similarity } from "./tabs/similarity.js";

/** @type {Tab[]} */
export const TABS = [similarity, correspondence, attention, components, gallery];
