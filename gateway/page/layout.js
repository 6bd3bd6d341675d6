/** A JSON value laid out to be read: names beside values, long texts folded, what has changed marked. What is deep or long opens on demand. */

import { fill, h } from "./dom.js";
import { Exact, pointed, step } from "./exact.js";
import { passage, said } from "./text.js";

const MOST_AT_ONCE = 600; // entries that are laid out before anybody asks for more
const MOST_OF_ONE = 100; // entries of one list or object
const DEEPEST = 7;
const SHORT = 120; // letters that stand on one line

/** Lay a value out. `changes` are operations of RFC 6902 that made it of `before`. */
export function layout(value, { changes, before } = {}) {
  const marks = new Map((changes ?? []).filter((each) => each.op !== "test").map((each) => [each.path, each.op]));
  return laid(value, "", { marks, before, left: MOST_AT_ONCE, depth: 0 });
}

function laid(value, at, state) {
  if (value instanceof Exact) return h("span", { class: "number", title: "shown digit for digit" }, value.source);
  if (typeof value === "string") return text(value);
  if (value === null || typeof value !== "object") return h("span", { class: typeof value }, String(value));
  const names = Object.keys(value);
  const gone = removed(at, state);
  if (!names.length && !gone.length) return h("span", { class: "empty" }, Array.isArray(value) ? "empty list" : "empty object");
  if (state.depth >= DEEPEST || state.left <= 0) return later(value, at, state);
  return entries(value, names, gone, at, state);
}

function text(value) {
  if (value.length <= SHORT && !value.includes("\n")) return said(value, { class: "string" });
  return h("div", { class: "string" }, passage(value));
}

/** Names and values. Those beyond the first hundred come when they are asked for. */
function entries(value, names, gone, at, state) {
  const list = h("dl", { class: Array.isArray(value) ? "json items" : "json" });
  const inner = { ...state, depth: state.depth + 1 };
  const add = (from) => {
    const upto = Math.min(from + MOST_OF_ONE, names.length);
    const made = names.slice(from, upto).map((name) => entry(name, value[name], step(at, name), inner));
    state.left = inner.left -= made.length;
    list.append(...made);
    if (upto < names.length) {
      const more = h(
        "button",
        { type: "button", class: "quiet" },
        `Show ${Math.min(MOST_OF_ONE, names.length - upto)} of ${names.length - upto} more`,
      );
      const row = h("div", { class: "more" }, h("dt", {}, "…"), h("dd", {}, more));
      more.addEventListener("click", () => {
        row.remove();
        inner.left = Math.max(inner.left, MOST_AT_ONCE);
        add(upto);
      });
      list.append(row);
    }
  };
  add(0);
  list.append(
    ...gone.map(([name, old]) =>
      h(
        "div",
        { class: "removed" },
        h("dt", {}, said(name)),
        h("dd", {}, h("del", {}, brief(old)), h("span", { class: "note" }, "is not there any more")),
      ),
    ),
  );
  return list;
}

function entry(name, value, at, state) {
  const op = state.marks.get(at);
  if (!op) return h("div", {}, h("dt", {}, said(name)), h("dd", {}, laid(value, at, state)));
  const old = state.before === undefined ? undefined : pointed(state.before, at);
  const note = old === undefined ? h("span", { class: "note" }, "new") : h("span", { class: "note" }, "was ", h("del", {}, brief(old)));
  return h("div", { class: "changed" }, h("dt", {}, said(name)), h("dd", {}, laid(value, at, state), note));
}

/** What operations have taken out of the object at a pointer, with what it was. */
function removed(at, state) {
  return [...state.marks]
    .filter(([path, op]) => op === "remove" && path.slice(0, path.lastIndexOf("/")) === at)
    .map(([path]) => [
      path
        .slice(path.lastIndexOf("/") + 1)
        .replaceAll("~1", "/")
        .replaceAll("~0", "~"),
      state.before === undefined ? undefined : pointed(state.before, path),
    ]);
}

/** A value in a few words. */
export function brief(value) {
  if (value === undefined) return said("…");
  if (value instanceof Exact || value === null || typeof value !== "object") {
    const shown = String(value);
    return said(shown.length > SHORT ? `${shown.slice(0, SHORT)}…` : shown);
  }
  const count = Object.keys(value).length;
  return said(Array.isArray(value) ? `a list of ${count}` : `an object of ${count}`);
}

/** A value that is laid out when it is opened. */
function later(value, at, state) {
  const body = h("div", {});
  const fold = h("details", { class: "deep" }, h("summary", {}, brief(value)), body);
  fold.addEventListener("toggle", () => {
    if (fold.open && !body.firstChild) fill(body, laid(value, at, { ...state, depth: 0, left: MOST_AT_ONCE }));
  });
  return fold;
}
