/** What stands around every view: the navigation, how the connection is, notes that come and go, and questions. */

import { fill, h, icon } from "./dom.js";
import { EXACT } from "./exact.js";
import { href } from "./router.js";
import { said } from "./text.js";

const NOTE_MS = 8_000;
const ROUNDED = "This browser rounds numbers beyond 2^53. Use a newer one to decide on actions that hold such.";
const GLYPHS = {
  approvals: ["M2.5 8.5l3.5 3.5 7.5-8"],
  sessions: ["M3 4h10", "M3 8h7", "M3 12h4"],
  calls: ["M2 5h9l-3-3", "M14 11H5l3 3"],
  spend: ["M3 13V8", "M8 13V3", "M13 13V6"],
  budgets: ["M2 8h12", "M2 5v6", "M14 5v6", "M6 8v-2"],
  breakers: ["M1 8h4l4-4", "M11 8h4"],
  keys: ["M6 8a3 3 0 1 0-.1.1", "M7 8h7v3", "M11 8v2"],
  rules: ["M3 3h10v10H3z", "M5.5 6h5", "M5.5 9h3"],
  people: ["M8 8a2.5 2.5 0 1 0-.1 0", "M3 14c.5-3 2.5-4 5-4s4.500 1 5 4"],
};

export class Shell {
  constructor(app, views) {
    this.app = app;
    this.views = views;
    this.nodes = Object.fromEntries(
      ["frame", "nav", "menu", "status", "main", "notes", "spoken"].map((id) => [id, document.getElementById(id)]),
    );
    this.waiting = 0;
    this.nodes.menu.addEventListener("click", () => this.unfold(this.nodes.menu.getAttribute("aria-expanded") !== "true"));
    this.live = h("span", { class: "live", data: { state: "connecting" } });
    app.live.addEventListener("state", () => this.showLive());
    this.theme = h("button", { type: "button", class: "quiet", on: { click: () => app.theme.turn() } });
    app.theme.addEventListener("changed", () => this.showTheme());
    this.showTheme();
    const pressed = (event) => event.target.closest("button, summary") && !this.nodes.notes.contains(event.target);
    document.addEventListener("click", (event) => pressed(event) && this.settle(), true); // before what is pressed says something new
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault();
      this.nodes.main.focus();
    });
  }

  /** Show the frame for whoever is logged in. */
  welcome(me) {
    const named = Object.entries(this.views).filter(([, view]) => view.label && (!view.need || this.app.can(view.need)));
    this.links = new Map(
      named.map(([name, view]) => [name, h("a", { href: href(name) }, icon(...GLYPHS[name]), h("span", {}, view.label))]),
    );
    const name = me.name || me.id;
    this.account = h("a", { class: "who", href: href("account"), "aria-label": `${name}: your account` }, said(name));
    this.badge = h("span", { class: "count", hidden: true });
    this.links.get("approvals").append(this.badge);
    fill(
      this.nodes.nav,
      h(
        "ul",
        {},
        [...this.links.values()].map((link) => h("li", {}, link)),
      ),
    );
    fill(
      this.nodes.status,
      this.live,
      this.account,
      this.theme,
      h("button", { type: "button", class: "quiet", on: { click: () => this.app.shortcuts.help() } }, "Shortcuts"),
      h("button", { type: "button", class: "quiet", on: { click: () => this.app.logOut() } }, "Log out"),
    );
    this.showLive();
    this.nodes.frame.hidden = false;
    if (!EXACT) this.note(ROUNDED, "bad");
  }

  /** Mark the view that is shown, and close the menu. */
  at(view) {
    for (const [name, link] of [...this.links, ["account", this.account]]) {
      if (name === (this.views[view]?.within ?? view)) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    this.unfold(false);
    this.settle();
  }

  /** How many approvals wait: beside the link and in the window's title. */
  count(waiting) {
    if (waiting > this.waiting && this.counted) this.say(`${waiting - this.waiting} more to decide, ${waiting} in all.`);
    this.counted = true;
    this.waiting = waiting;
    this.badge.hidden = !waiting;
    fill(this.badge, String(waiting), h("span", { class: "unheard" }, " waiting"));
    this.title(this.titled);
  }

  title(text) {
    this.titled = text;
    document.title = `${this.waiting ? `(${this.waiting}) ` : ""}${text ? `${text} · ` : ""}Lockgate`;
  }

  /** Tell somebody who does not look. */
  say(text) {
    fill(this.nodes.spoken, text);
  }

  /** A note that goes away by itself; one of something bad stays until it is closed, or somebody goes on. */
  note(text, kind = "good", lasting = kind === "bad" ? Infinity : NOTE_MS) {
    const close = h("button", { type: "button", class: "quiet", "aria-label": "Close this note" }, "×");
    const until = kind === "bad" && text !== ROUNDED ? { until: "next" } : {};
    const note = h("div", { class: `toast ${kind}`, data: until }, h("span", {}, text), close);
    close.addEventListener("click", () => note.remove());
    this.nodes.notes.append(note);
    if (lasting !== Infinity) setTimeout(() => note.remove(), lasting);
  }

  /** Take away what went wrong before: whoever presses something has seen it, and another view is not the place for it. */
  settle() {
    for (const note of this.nodes.notes.querySelectorAll("[data-until=next]")) note.remove();
  }

  /** Ask in a dialog; what is chosen, or null. `actions` are `{value, label, kind}`; the first has the focus. */
  ask(title, body, actions, first) {
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" });
    const buttons = actions.map(({ value, label, kind }) =>
      h("button", { type: "button", class: kind, data: { value }, on: { click: () => dialog.close(value) } }, label),
    );
    dialog.append(
      h("h2", { id: "dialog-title" }, title),
      h("div", { class: "body" }, body),
      h(
        "div",
        { class: "actions" },
        h("button", { type: "button", class: "quiet", on: { click: () => dialog.close("") } }, actions.length ? "Cancel" : "Close"),
        buttons,
      ),
    );
    document.body.append(dialog);
    return new Promise((resolve) => {
      dialog.addEventListener("close", () => {
        dialog.remove();
        resolve(dialog.returnValue || null);
      });
      dialog.showModal();
      (first ?? buttons.at(-1))?.focus();
    });
  }

  unfold(open) {
    this.nodes.menu.setAttribute("aria-expanded", String(open));
    this.nodes.nav.classList.toggle("open", open);
  }

  showTheme() {
    fill(this.theme, `Theme: ${this.app.theme.choice === "auto" ? "system" : this.app.theme.choice}`);
  }

  showLive() {
    this.live.dataset.state = this.app.live.state;
    fill(this.live, this.app.live.word);
  }
}
