/** What waits for a decision, oldest first, kept true without reload; decisions on several of one shape at once. */

import { decideAll } from "./decide.js";
import { fill, h } from "./dom.js";
import { go, href } from "./router.js";
import { moveFocus } from "./shortcuts.js";
import { empty, heading } from "./table.js";
import { said } from "./text.js";
import { progress } from "./votes.js";
import { ago, count, gauge, left } from "./when.js";

const STATES = ["pending", "unknown", "approved", "executing", "succeeded", "failed", "denied", "expired", "withdrawn"];
const WORDS = { pending: "waiting", unknown: "outcome unknown" };
const FILTERS = ["rule", "tool", "route", "principal", "team", "session", "kind", "shape"];
const KINDS = ["request", "tool", "tool_call", "response"];
const PAGE = 50;

const EVENTS = {
  open: "asked",
  vote: "voted",
  approve: "approved",
  deny: "denied",
  expire: "expired",
  withdraw: "withdrawn",
  strengthen: "needs more votes",
  escalate: "escalated",
  claim: "begun",
  release: "released",
  return: "back in the queue",
  succeed: "succeeded",
  fail: "failed",
  lose: "outcome lost",
  deliver: "answer delivered",
};

/** What happened to an approval, as a word. */
export function eventWord(event) {
  return EVENTS[event] ?? event;
}

/** An action in two parts: its tool or route, and the rest of its one line. */
export function gist(row) {
  const name = row.tool || row.route || row.kind;
  const rest = row.summary?.startsWith(name) ? row.summary.slice(name.length).replace(/^:? /, "") : row.summary;
  return { name, rest: rest ?? "" };
}

/** The word for a state. */
export function stateWord(state) {
  return WORDS[state] ?? state;
}

/** A state as a coloured word. */
export function stateChip(state) {
  return h("span", { class: `chip ${state}` }, stateWord(state));
}

export async function approvals(app, place) {
  const list = new List(app, place.query);
  await list.load();
  return {
    title: "Approvals",
    node: list.node,
    shown: () => app.tick(),
    refresh: (parts) => (parts.has("approvals") ? list.load() : null),
    keys: {
      j: () => moveFocus(list.links(), 1),
      k: () => moveFocus(list.links(), -1),
      x: () => list.pickFocused(),
      u: () => go("approvals"),
      a: () => list.decide("approve"),
      d: () => list.decide("deny"),
      "/": () => list.openFilter(),
    },
  };
}

class List {
  constructor(app, query) {
    this.app = app;
    this.query = query;
    this.state = query.state || "pending";
    this.pages = 1;
    this.rows = new Map(); // id -> what is shown of it, and its node
    this.picked = new Set();
    this.items = h("ul", { class: "queue", "aria-label": "Approvals" });
    this.tabs = h("nav", { class: "tabs", "aria-label": "By state" });
    this.more = h("div", { class: "more" });
    this.bar = h("div", { class: "batch", role: "region", "aria-label": "Selection", hidden: true });
    this.none = h("div", {});
    this.node = h(
      "div",
      { class: "view" },
      heading(
        "Approvals",
        "What waits for a person. Nothing here happens before somebody has decided.",
        h("a", { class: "button quiet", href: href("grants") }, "Grants"),
      ),
      this.tabs,
      this.filter(),
      this.items,
      this.none,
      this.more,
      this.bar,
    );
  }

  async load() {
    let after;
    const found = [];
    for (let page = 0; page < this.pages; page += 1) {
      const told = await this.app.api.get("/-/approvals", { ...this.wanted, after, limit: PAGE });
      found.push(...told.approvals);
      this.counts = told.counts;
      after = told.next;
      if (!after) break;
    }
    this.show(found, after);
  }

  get wanted() {
    const ended = !["pending", "unknown", "open", "approved", "executing"].includes(this.state);
    return { ...this.query, state: this.state, order: ended ? "newest" : "oldest" };
  }

  show(found, next) {
    this.app.queue = found.map((row) => row.id);
    const alike = Map.groupBy(found.filter(pickable), family);
    this.picked = new Set([...this.picked].filter((id) => found.some((row) => row.id === id && pickable(row))));
    for (const id of this.rows.keys()) if (!this.app.queue.includes(id)) this.drop(id);
    found.forEach((row, at) => this.place(row, at, alike.get(family(row))?.length ?? 1));
    this.found = found;
    this.showTabs();
    this.showBar();
    fill(this.none, found.length ? null : this.nothing());
    const more = h(
      "button",
      { type: "button", on: { click: () => this.app.attempt(() => ((this.pages += 1), this.load())) } },
      "Show more",
    );
    fill(this.more, next ? more : null);
    if (!FILTERS.some((name) => this.query[name])) this.app.shell.count(this.counts.pending ?? 0);
    this.app.tick();
  }

  /** Put a row where it belongs. One that says the same as before keeps its node, and with it the focus. */
  place(row, at, alike) {
    const told = JSON.stringify([row, alike]);
    let known = this.rows.get(row.id);
    if (known?.told !== told) {
      const node = this.row(row, alike);
      if (known) {
        const focused = known.node.contains(document.activeElement);
        known.node.replaceWith(node);
        if (focused) node.querySelector("a").focus();
      } else if (this.found) node.classList.add("arrived");
      known = { told, node };
      this.rows.set(row.id, known);
    }
    if (this.items.children[at] !== known.node) this.items.insertBefore(known.node, this.items.children[at] ?? null);
  }

  drop(id) {
    this.rows.get(id).node.remove();
    this.rows.delete(id);
  }

  row(row, alike) {
    const who = [
      said(row.principal_name || row.principal),
      row.team ? [" · ", said(row.team)] : null,
      row.on_behalf_of ? [" · for ", said(row.on_behalf_of)] : null,
    ];
    const open = row.state === "pending";
    const { name, rest } = gist(row);
    return h(
      "li",
      { data: { id: row.id, state: row.state } },
      alike > 1 && pickable(row) ? this.pick(row, alike) : h("span", { class: "pick" }),
      h(
        "a",
        { class: "entry", href: href("approvals", row.id) },
        open ? gauge(row.created_at, row.expires_at) : h("span", { class: "gauge still" }),
        h(
          "span",
          { class: "what" },
          said(name, { class: "strong" }),
          row.irreversible ? h("span", { class: "chip irreversible" }, "irreversible") : null,
          said(rest, { class: "gist" }),
        ),
        h("span", { class: "left" }, open ? [left(row.expires_at), h("span", { class: "unheard" }, " left")] : stateChip(row.state)),
        h("span", { class: "who" }, who),
        h(
          "span",
          { class: "facts" },
          said(row.rule),
          open ? ` · ${progress(row)}` : "",
          " · asked ",
          ago(row.created_at),
          alike > 1 ? h("span", { class: "chip alike" }, `${alike} alike`) : null,
        ),
      ),
    );
  }

  pick(row, alike) {
    const box = h("input", {
      type: "checkbox",
      "aria-label": `Select ${row.summary}, one of ${alike} alike`,
      checked: this.picked.has(row.id),
    });
    box.addEventListener("change", () => this.choose(row, box.checked));
    return h("label", { class: "pick" }, box);
  }

  /** A selection holds what is of one shape and one rule; another one begins anew. */
  choose(row, chosen) {
    const first = this.found.find((each) => this.picked.has(each.id));
    if (first && family(first) !== family(row)) this.picked.clear();
    if (chosen) this.picked.add(row.id);
    else this.picked.delete(row.id);
    this.showBar();
  }

  pickFocused() {
    document.activeElement.closest?.("li")?.querySelector("input[type=checkbox]")?.click();
  }

  showBar() {
    for (const [id, { node }] of this.rows) {
      const box = node.querySelector("input[type=checkbox]");
      if (box) box.checked = this.picked.has(id);
    }
    const first = this.found.find((row) => this.picked.has(row.id));
    this.bar.hidden = !first;
    if (!first) return;
    const family_ = this.found.filter((row) => pickable(row) && family(row) === family(first));
    const all = () => {
      family_.slice(0, 100).forEach((row) => this.picked.add(row.id));
      this.showBar();
    };
    fill(
      this.bar,
      h("span", {}, `${this.picked.size} of ${family_.length} alike selected`),
      h("button", { type: "button", class: "quiet", on: { click: all } }, "All of them"),
      h("button", { type: "button", class: "quiet", on: { click: () => (this.picked.clear(), this.showBar()) } }, "None"),
      h("button", { type: "button", class: "deny", on: { click: () => this.decide("deny") } }, "Deny…"),
      h("button", { type: "button", class: "approve", on: { click: () => this.decide("approve") } }, "Approve…"),
    );
  }

  /** Decide on the selection. Without one, the approval that has the focus is opened: nothing is decided that was not shown. */
  async decide(verdict) {
    const chosen = this.found.filter((row) => this.picked.has(row.id));
    if (!chosen.length) {
      document.activeElement.closest?.("li[data-id]")?.querySelector("a").click();
    } else if (await decideAll(this.app, verdict, chosen)) {
      this.picked.clear();
      await this.app.attempt(() => this.load());
    }
  }

  showTabs() {
    const tab = (state, label) =>
      h(
        "a",
        {
          href: href("approvals", "", { ...this.query, state: state === "pending" ? "" : state }),
          "aria-current": this.state === state ? "true" : null,
        },
        label,
        this.counts[state] ? h("span", { class: "count" }, count(this.counts[state])) : null,
      );
    fill(
      this.tabs,
      STATES.filter((state) => ["pending", "unknown"].includes(state) || this.counts[state] || state === this.state).map((state) =>
        tab(state, stateWord(state)),
      ),
      tab("all", "all"),
    );
  }

  filter() {
    const inputs = FILTERS.map((name) => [
      name,
      name === "kind"
        ? h(
            "select",
            { name },
            ["", ...KINDS].map((kind) => h("option", { value: kind, selected: kind === (this.query.kind ?? "") }, kind || "any")),
          )
        : h("input", { name, value: this.query[name] ?? "", spellcheck: "false", autocapitalize: "none" }),
    ]);
    const form = h(
      "form",
      { class: "grid" },
      inputs.map(([name, input]) => h("label", {}, h("span", {}, name), input)),
      h("button", { type: "submit" }, "Filter"),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      go("approvals", "", { state: this.query.state, ...Object.fromEntries(inputs.map(([name, input]) => [name, input.value.trim()])) });
    });
    const set = FILTERS.filter((name) => this.query[name]);
    const chips = set.map((name) =>
      h(
        "a",
        { class: "chip", href: href("approvals", "", { ...this.query, [name]: "" }) },
        `${name}: `,
        said(this.query[name]),
        h("span", { "aria-hidden": "true" }, " ×"),
        h("span", { class: "unheard" }, ", take this filter away"),
      ),
    );
    this.folded = h("details", { class: "filter" }, h("summary", {}, "Filter"), form);
    return h("div", { class: "filters" }, this.folded, chips);
  }

  openFilter() {
    this.folded.open = true;
    this.folded.querySelector("input").focus();
  }

  nothing() {
    if (FILTERS.some((name) => this.query[name])) return empty("Nothing fits this filter", "Take a part of it away to see more.");
    if (this.state !== "pending") return empty(`No approval is ${stateWord(this.state)}`, "Those that get there will be listed here.");
    return empty(
      "Nothing waits for you",
      "A call that a rule with the effect require_approval holds appears here at once. Such a rule, in policies/:",
      '[[rule]]\nid = "payments-need-a-person"\nphase = "tool_call"\neffect = "require_approval"\nmatch = { tools = ["pay_invoice"] }\nmessage = "A person looks at every payment."',
    );
  }

  links() {
    return [...this.items.querySelectorAll("a.entry")];
  }
}

function family(row) {
  return `${row.shape} ${row.rule}`;
}

/** Whether it may be decided together with others. What cannot be undone is decided alone, after it was read. */
function pickable(row) {
  return row.state === "pending" && row.may_vote && !row.irreversible;
}
