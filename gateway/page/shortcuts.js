/** One key, one step. They can be switched off, for those whose speech or hands type by accident (WCAG 2.1.4). */

import { h } from "./dom.js";

const KEY = "lockgate-shortcuts";
const KNOWN = [
  ["j / k", "the next or the one before, in a list and among approvals"],
  ["Enter", "open what has the focus"],
  ["x", "select an approval, for a decision on several"],
  ["a", "approve"],
  ["d", "deny"],
  ["e", "edit the arguments"],
  ["/", "filter"],
  ["u", "back to the list"],
  ["1 – 9", "the views, in their order"],
  ["?", "this help"],
];

export class Shortcuts {
  /** `app.view.keys` holds what the view at hand does with a key. */
  constructor(app) {
    this.app = app;
    this.on = localStorage.getItem(KEY) !== "off";
    document.addEventListener("keydown", (event) => this.press(event));
  }

  press(event) {
    const typed = event.target.closest?.("input:not([type=checkbox]), textarea, select, [contenteditable]");
    if (event.ctrlKey || event.metaKey || event.altKey || typed || document.querySelector("dialog[open]") || !this.app.me) return;
    if (event.key === "?") {
      event.preventDefault();
      this.help();
    } else if (this.on && /^[1-9]$/.test(event.key)) {
      [...this.app.shell.links.values()][Number(event.key) - 1]?.click();
    } else if (this.on && this.app.view?.keys?.[event.key]) {
      event.preventDefault();
      this.app.view.keys[event.key]();
    }
  }

  /** What the keys do, and whether they do it. */
  async help() {
    const rows = KNOWN.map(([key, what]) =>
      h(
        "div",
        {},
        h(
          "dt",
          {},
          key.split(" / ").map((each) => h("kbd", {}, each)),
        ),
        h("dd", {}, what),
      ),
    );
    const choice = h("input", { type: "checkbox", id: "shortcuts-on", checked: this.on });
    choice.addEventListener("change", () => {
      this.on = choice.checked;
      localStorage.setItem(KEY, this.on ? "on" : "off");
    });
    await this.app.shell.ask(
      "Shortcuts",
      [h("dl", { class: "keys" }, rows), h("label", { class: "check" }, choice, " Single keys do this")],
      [],
      choice,
    );
  }
}

/** Move the focus among nodes of a list, wherever it was before. */
export function moveFocus(nodes, by) {
  const at = nodes.findIndex((node) => node === document.activeElement || node.contains(document.activeElement));
  const next = nodes[at < 0 ? (by > 0 ? 0 : nodes.length - 1) : Math.min(nodes.length - 1, Math.max(0, at + by))];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}
