/** Light or dark: as the system is set, until the button says otherwise. */
import { find } from "./dom.js";

const KEY = "theme";
const root = document.documentElement;
const isDark = () =>
  root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

/** Show a theme, and keep it where the browser allows. */
function choose(/** @type {string} */ theme) {
  root.dataset.theme = theme;
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // a browser that keeps nothing: the choice holds for this visit
  }
}

try {
  const kept = localStorage.getItem(KEY);
  if (kept) root.dataset.theme = kept;
} catch {
  // a browser that keeps nothing: the system's theme
}
find("#theme").addEventListener("click", () => choose(isDark() ? "light" : "dark"));
