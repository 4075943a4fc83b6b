/**
 * Elements and controls, each made in one call.
 */

/** @typedef {Record<string, string | number | boolean | ((event: any) => void)>} Attributes */

/**
 * Make an element; attributes that are functions listen, those that are false are left out.
 * @param {string} tag @param {Attributes} [attributes] @param {(Node | string)[]} children
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  element.append(...children);
  return element;
}

/** Make an SVG element. */
export function svg(/** @type {string} */ tag, /** @type {Attributes} */ attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(element, attributes);
  return element;
}

function set(/** @type {Element} */ element, /** @type {Attributes} */ attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
}

/** Find an element of the page, which must have it. */
export function find(/** @type {string} */ selector, /** @type {ParentNode} */ within = document) {
  const element = within.querySelector(selector);
  if (!element) throw new Error(`the page has no ${selector}`);
  return /** @type {HTMLElement} */ (element);
}

/**
 * Make a slider with its label and its value in words.
 * @param {{label: string, min: number, max: number, step?: number, value: number}} range
 * @param {(value: number) => string} show @param {(value: number) => void} changed
 */
export function slider({ label, min, max, step = 1, value }, show, changed) {
  const output = h("output", {}, show(value));
  const input = /** @type {HTMLInputElement} */ (
    h("input", { type: "range", min, max, step, value, "aria-label": label, input: () => move() })
  );
  const move = () => {
    describe();
    changed(input.valueAsNumber);
  };
  const describe = () => {
    output.textContent = show(input.valueAsNumber);
    input.setAttribute("aria-valuetext", show(input.valueAsNumber));
    const share = (input.valueAsNumber - Number(input.min)) / (Number(input.max) - Number(input.min));
    input.style.setProperty("--filled", `${100 * (share || 0)}%`);
  };
  const element = h("div", { class: "slider" }, h("span", { "aria-hidden": "true" }, label), output, input);
  describe();
  return { element, input, describe };
}

/**
 * Make a choice among a few.
 * @param {string} label @param {Record<string, string>} options  value -> words @param {string} value
 * @param {(value: any) => void} changed
 */
export function choice(label, options, value, changed) {
  const name = `choice-${label.toLowerCase()}`;
  const inputs = Object.entries(options).map(([option, words]) =>
    h(
      "label",
      {},
      h("input", { type: "radio", name, value: option, checked: option === value, change: () => changed(option) }),
      h("span", {}, words),
    ),
  );
  return h("fieldset", { class: "choice" }, h("legend", {}, label), h("div", {}, ...inputs));
}

/** Make a box to tick. */
export function tick(
  /** @type {string} */ label,
  /** @type {boolean} */ checked,
  /** @type {(checked: boolean) => void} */ changed,
) {
  const input = h("input", { type: "checkbox", checked, change: (event) => changed(event.target.checked) });
  return h("label", { class: "tick" }, input, h("span", {}, label));
}
