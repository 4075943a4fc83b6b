/** The page: what is served, two pictures, the tabs, and what is on the screen as code and files. */
import { Refusal, fetchInfo, setKey } from "./api.js";
import { lookControls } from "./display.js";
import { find, h } from "./dom.js";
import { saveRegions, saveTable, saveView } from "./downloads.js";
import { drawLines } from "./lines.js";
import { Panel } from "./panel.js";
import { Slot } from "./slot.js";
import { TABS } from "./tabs.js";

const QUIET_MS = 250;
/* For so long nothing changes before a screen reader is told and the code is written. */

/** @type {("a" | "b")[]} */
const SIDES = ["a", "b"];

/** @template T @param {(side: "a" | "b") => T} give */
const bySide = (give) => ({ a: give("a"), b: give("b") });

/** @type {Map<string, import("./tabs.js").View>} */
const views = new Map();
/** @type {import("./tabs.js").Tab[]} */
let tabs = [];
/** @type {import("./tabs.js").Tab} */
let open = TABS[0];
/** @type {import("./tabs.js").Line[]} */
let lines = [];
let isWaiting = false;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let speaking;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let writing;

const look = { smooth: true, look: "viridis", opacity: 0.7 };

/** @type {import("./tabs.js").App} */
const app = {
  info: null,
  state: { at: { side: "a", region: 0 }, isPinned: false, isPointed: false, fit: "stretch" },
  pictures: /** @type {any} */ ({}),
  panels: bySide(
    (side) =>
      new Panel(find(`#${side}`), {
        onHover: (region) => hover(side, region),
        onPin: (region) => pin(side, region),
        onMove: (region) => go(side, region, app.state.isPinned),
        onEscape: () => release(),
      }),
  ),
  sides: SIDES,
  look,
  controls: lookControls(look, () => app.changed()),
  bySide,
  changed() {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(render);
  },
  draw(drawn, point) {
    lines = drawn;
    drawLines(/** @type {any} */ (find("#lines")), app.panels, lines, point);
  },
  describe(text) {
    clearTimeout(speaking);
    speaking = setTimeout(() => (find("#live").textContent = text), QUIET_MS);
  },
};

const slots = bySide(
  (side) =>
    new Slot(find(`#${side}`), app.panels[side], {
      limits: () => ({ fit: app.state.fit, maxBytes: app.info.limits.max_body_bytes }),
      onPicture: (picture) => {
        app.pictures[side] = picture;
        if (app.state.at.side === side) release();
        app.changed();
      },
    }),
);

/** The pointer is over a region, or over none. */
function hover(/** @type {"a" | "b"} */ side, /** @type {number | null} */ region) {
  if (app.state.isPinned) return;
  app.state.isPointed = region !== null;
  if (region !== null) app.state.at = { side, region };
  app.changed();
}

/** Pin a region; the pinned one is let go. */
function pin(/** @type {"a" | "b"} */ side, /** @type {number} */ region) {
  const { at, isPinned } = app.state;
  const isSame = isPinned && at.side === side && at.region === region;
  go(side, region, !isSame);
}

function go(/** @type {"a" | "b"} */ side, /** @type {number} */ region, /** @type {boolean} */ isPinned) {
  Object.assign(app.state, { at: { side, region }, isPinned, isPointed: true });
  app.changed();
}

/** Let the pinned region go and ask from where the picture begins: its middle. */
function release() {
  const { side } = app.state.at;
  Object.assign(app.state, { at: { side, region: app.panels[side].at }, isPinned: false, isPointed: false });
  app.changed();
}

/** Show the state, once a frame at most. */
function render() {
  isWaiting = false;
  if (!app.pictures.a || !app.pictures.b) return;
  const view = /** @type {import("./tabs.js").View} */ (views.get(open.id));
  view.render();
  document.body.classList.toggle("pinned", app.state.isPinned);
  document.body.classList.toggle("light", look.look === "light" && open.id !== "components");
  find("#take").hidden = !view.snippet;
  find("[data-save=table]").hidden = !view.table;
  find("#code").ariaBusy = "true";
  clearTimeout(writing);
  writing = setTimeout(writeCode, QUIET_MS); // at the speed of the pointer nobody reads it
}

/** Write what is on the screen as a program. */
function writeCode() {
  const code = find("#code");
  const snippet = views.get(open.id)?.snippet;
  if (snippet) code.textContent = snippet()[language()];
  code.ariaBusy = null;
}

function language() {
  const chosen = document.querySelector("input[name=language]:checked");
  return /** @type {"curl" | "python"} */ (/** @type {HTMLInputElement} */ (chosen).value);
}

/** Open a tab. */
function select(/** @type {import("./tabs.js").Tab} */ tab) {
  open = tab;
  if (!views.has(tab.id)) views.set(tab.id, tab.create(app));
  const view = /** @type {import("./tabs.js").View} */ (views.get(tab.id));
  for (const { id } of tabs) {
    const button = find(`#tab-${id}`);
    button.setAttribute("aria-selected", String(id === tab.id));
    button.tabIndex = id === tab.id ? 0 : -1;
  }
  find("#view").setAttribute("aria-labelledby", `tab-${tab.id}`);
  find("#hint").textContent = tab.hint;
  find("#controls").replaceChildren(...view.controls);
  find("#pictures").hidden = find("#keys").hidden = Boolean(view.stage);
  find("#own").replaceChildren(...(view.stage ? [view.stage] : []));
  lines = [];
  find("#lines").replaceChildren();
  history.replaceState(null, "", `#${tab.id}`);
  app.changed();
}

/** Make the row of tabs, and say why the served model lacks one. */
function makeTabs() {
  tabs = TABS.filter((tab) => tab.unavailable(app.info) === null);
  const missing = TABS.flatMap((tab) => tab.unavailable(app.info) ?? []);
  find("#missing").textContent = missing.join(" ");
  find("#tabs").replaceChildren(
    ...tabs.map((tab) =>
      h("button", { type: "button", role: "tab", id: `tab-${tab.id}`, "aria-controls": "view", click: () => select(tab) }, tab.title),
    ),
  );
  find("#tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(open) + step + tabs.length) % tabs.length];
    select(next);
    find(`#tab-${next.id}`).focus();
  });
}

/** Say what is served. */
function showInfo() {
  const { model, dim, training, engine, precision, arch } = app.info;
  find("#model").textContent = model;
  find("#engine").textContent = `${arch} · ${dim} features · ${engine}, ${precision}`;
  find("#untrained").hidden = training !== null;
}

/** Connect what stands below and above the pictures. */
function wire() {
  for (const input of document.querySelectorAll("input[name=fit]")) {
    input.addEventListener("change", () => {
      app.state.fit = /** @type {HTMLInputElement} */ (input).value;
      for (const side of SIDES) slots[side].again();
    });
  }
  find("[data-action=same]").addEventListener("click", () => slots.b.load(app.pictures.a.original));
  find("#languages").addEventListener("change", writeCode);
  find("#copy").addEventListener("click", copy);
  const saves = {
    view: () => saveView(app, lines),
    a: () => saveRegions(app.pictures.a, app.state.fit),
    b: () => saveRegions(app.pictures.b, app.state.fit),
    table: () => saveTable(views.get(open.id)?.table?.() ?? [], `${open.id}.csv`),
  };
  for (const [name, act] of Object.entries(saves)) find(`[data-save=${name}]`).addEventListener("click", act);
  document.addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (file) slots[app.state.at.side].load({ name: file.name, file, isSample: false });
  });
  // A file that misses the pictures must not replace the page.
  for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
  new ResizeObserver(() => app.changed()).observe(find("#pictures"));
}

/** Copy the code; where the browser allows no copying (plain HTTP from afar), select it. */
async function copy() {
  writeCode();
  const code = find("#code");
  const button = find("#copy");
  const words = button.textContent;
  try {
    await navigator.clipboard.writeText(code.textContent ?? "");
    button.textContent = "Copied";
  } catch {
    getSelection()?.selectAllChildren(code);
    button.textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => (button.textContent = words), 2000);
}

/** Ask for the service's key, and again while it is not one. */
async function askForKey() {
  const form = /** @type {HTMLFormElement} */ (find("#key"));
  form.hidden = false;
  const input = /** @type {HTMLInputElement} */ (find("input", form));
  input.focus();
  await new Promise((resolve) => form.addEventListener("submit", resolve, { once: true }));
  setKey(input.value.trim());
  form.hidden = true;
}

/** Ask what is served, with a key where the service wants one. */
async function getInfo() {
  for (;;) {
    try {
      return await fetchInfo();
    } catch (error) {
      if (!(error instanceof Refusal && error.code === "unauthorized")) throw error;
      await askForKey();
    }
  }
}

/** Begin: ask what is served, show two pictures. */
async function start() {
  find("#key").addEventListener("submit", (event) => event.preventDefault());
  app.info = await getInfo();
  showInfo();
  makeTabs();
  wire();
  select(tabs.find(({ id }) => `#${id}` === location.hash) ?? tabs[0]);
  await Promise.all([slots.a.sample("cat.jpg"), slots.b.sample("coffee.jpg")]);
  document.body.classList.add("ready");
}

start().catch((error) => {
  find("#failed").hidden = false;
  find("#failed").textContent = error.message;
  throw error;
});
