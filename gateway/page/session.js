/** One session as a timeline: every call, approval, vote and change in the order of time, with what it cost. */

import { eventWord } from "./approvals.js";
import { fill, h } from "./dom.js";
import { layout } from "./layout.js";
import { go, href } from "./router.js";
import { heading } from "./table.js";
import { said } from "./text.js";
import { ago, clock, count, usd } from "./when.js";

const PAGE = 200;
const ACTIONS = {
  freeze: { label: "Freeze", about: "Its calls are refused until it is thawed. Calls under way go on." },
  thaw: { label: "Thaw", about: "Its calls are let through again." },
  kill: { label: "Kill", about: "Its calls are refused for good. A killed session cannot be thawed." },
};

export async function session(app, place) {
  const view = new Session(app, place);
  await view.load();
  return {
    title: `Session ${place.id}`,
    node: view.node,
    keys: { u: () => go("sessions") },
    refresh: (parts) => (["calls", "sessions", "approvals"].some((part) => parts.has(part)) ? view.load() : null),
  };
}

class Session {
  constructor(app, { id, query }) {
    this.app = app;
    this.path = `/-/sessions/${encodeURIComponent(id)}`;
    this.principal = query.principal;
    this.id = id;
    this.pages = 1;
    this.node = h("div", { class: "view" });
  }

  async load() {
    const query = { principal: this.principal };
    const { session: session_ } = await this.app.api.get(this.path, query);
    const entries = await this.entries({ principal: session_.principal });
    this.principal = session_.principal;
    const figure = (value, label) => h("div", {}, h("dd", {}, value), h("dt", {}, label));
    const facts = Object.entries(session_.facts ?? {});
    fill(
      this.node,
      h("p", { class: "back" }, h("a", { href: href("sessions") }, "← All sessions")),
      heading(
        said(this.id),
        ["Of ", said(session_.principal_name || session_.principal), session_.began_at ? [", began ", ago(session_.began_at)] : null],
        this.actions(session_),
      ),
      h(
        "dl",
        { class: "figures" },
        figure(h("span", { class: `chip ${session_.state}` }, session_.state ?? "active"), "state"),
        figure(count(session_.calls), "calls"),
        figure(usd(session_.spend_usd), "spent"),
        figure(session_.labels?.length ? said(session_.labels.join(", ")) : "none", "labels"),
      ),
      session_.note ? h("p", {}, "Note: ", said(session_.note), session_.author ? [" (", said(session_.author), ")"] : null) : null,
      facts.length
        ? h(
            "section",
            { class: "panel" },
            h("h2", {}, "Facts"),
            layout(Object.fromEntries(facts.map(([name, fact]) => [name, fact.value]))),
          )
        : null,
      h(
        "section",
        { class: "panel", "aria-labelledby": "line" },
        h("h2", { id: "line" }, "Timeline"),
        timeline(entries),
        this.next ? this.further() : null,
      ),
    );
    this.app.tick();
  }

  /** What is on record of it, page after page as far as somebody has asked. */
  async entries(query) {
    const found = [];
    this.next = null;
    for (let page = 0; page < this.pages; page += 1) {
      const told = await this.app.api.get(`${this.path}/timeline`, { ...query, limit: PAGE, after: this.next });
      found.push(...told.timeline);
      this.next = told.next;
      if (!this.next) break;
    }
    return found;
  }

  further() {
    return h(
      "p",
      { class: "more" },
      h("button", { type: "button", on: { click: () => this.app.attempt(() => ((this.pages += 1), this.load())) } }, "Show more"),
    );
  }

  actions(session_) {
    if (!this.app.can("operate") || session_.state === "killed") return null;
    const offered = session_.state === "frozen" ? ["thaw", "kill"] : ["freeze", "kill"];
    return offered.map((action) =>
      h("button", { type: "button", class: action === "kill" ? "deny" : "", on: { click: () => this.act(action) } }, ACTIONS[action].label),
    );
  }

  async act(action) {
    const { label, about } = ACTIONS[action];
    const note = h("input", { maxlength: "500", "aria-label": "Note" });
    const sure = await this.app.shell.ask(
      `${label} this session?`,
      [h("p", {}, about), h("label", { class: "field" }, h("span", {}, "Note"), note)],
      [{ value: "yes", label, kind: action === "kill" ? "deny" : "" }],
      note,
    );
    if (!sure) return;
    const query = this.principal ? `?principal=${encodeURIComponent(this.principal)}` : "";
    await this.app.attempt(() =>
      this.app.api.post(`${this.path}/${action}${query}`, note.value ? { note: note.value } : {}).then(() => this.load()),
    );
  }
}

function timeline(events) {
  if (!events.length) return h("p", { class: "quiet-text" }, "Nothing is on record of it.");
  const asked = new Set(events.filter((event) => event.kind === "approval" && event.event === "open").map((event) => event.call));
  // A tool that was called is a call already, and a call that only waits is its approval.
  const told = events.filter(
    (event) => !(event.kind === "tool" && event.via !== "model") && !(event.code === "approval_pending" && asked.has(event.call)),
  );
  return h(
    "ol",
    { class: "timeline" },
    told.map((event) => h("li", { class: event.kind }, clock(event.at), h("div", {}, entry(event)))),
  );
}

/** One thing that happened, by its kind; whatever is new to this page is laid out as it is. */
function entry(event) {
  switch (event.kind) {
    case "call":
      return call(event);
    case "tool":
      return [
        h("strong", {}, "proposed "),
        said(event.tool),
        event.released ? null : [" ", h("span", { class: "chip denied" }, "kept back")],
      ];
    case "approval":
      return approval(event);
    case "vote":
      return [
        said(event.name || event.person, { class: "strong" }),
        event.verdict === "approve" ? " approved " : " denied ",
        link("approvals", event.approval, "the approval"),
        event.comment ? [": ", said(event.comment)] : null,
      ];
    case "frozen":
    case "thawed":
    case "killed":
      return [
        h("span", { class: `chip ${event.kind}` }, event.kind),
        event.author ? [" by ", said(event.author)] : null,
        event.note ? [": ", said(event.note)] : null,
      ];
    default:
      return rest(event);
  }
}

function call(event) {
  const took =
    event.seconds === null ? "" : ` in ${event.seconds < 1 ? `${Math.round(event.seconds * 1_000)} ms` : `${event.seconds.toFixed(1)} s`}`;
  return [
    event.cost_nusd ? h("span", { class: "cost" }, usd(event.cost_usd)) : null,
    link("calls", event.call, event.route || event.operation),
    " ",
    decision(event.decision),
    h("span", { class: "quiet-text" }, ` ${(event.code ?? event.outcome).replaceAll("_", " ")}${took}`),
    event.rule ? [" · ", said(event.rule)] : null,
    event.labels?.map((label) => [" ", h("span", { class: "chip" }, said(label))]),
  ];
}

function approval(event) {
  return [
    link("approvals", event.approval, event.tool || event.route || event.rule),
    " ",
    h("span", { class: `chip ${event.state}` }, eventWord(event.event)),
    h("span", { class: "quiet-text" }, " ", said(event.rule)),
    event.author && event.event !== "open" ? [" by ", said(event.author)] : null,
    event.reason ? [": ", said(event.reason)] : null,
  ];
}

function rest({ kind, at: _at, at_ns: _ns, author, ...told }) {
  const known = Object.fromEntries(Object.entries(told).filter(([, value]) => value !== null && value !== ""));
  return [
    h("strong", {}, String(kind).replaceAll("_", " ")),
    author ? [" by ", said(author)] : null,
    Object.keys(known).length ? layout(known) : null,
  ];
}

function link(view, id, text) {
  return h("a", { href: href(view, id) }, said(text));
}

/** A decision as a coloured word. */
export function decision(word) {
  return word ? h("span", { class: `chip ${word === "deny" ? "denied" : word === "held" ? "pending" : "approved"}` }, word) : null;
}
