/** One session as a timeline: every call, approval, vote and change in the order of time, with what it cost. */

import { stateWord } from "./approvals.js";
import { fill, h } from "./dom.js";
import { layout } from "./layout.js";
import { go, href } from "./router.js";
import { heading } from "./table.js";
import { said } from "./text.js";
import { ago, clock, count, usd } from "./when.js";

const ACTIONS = {
  freeze: { label: "Freeze", about: "Its calls are refused until it is thawed. Calls under way go on." },
  thaw: { label: "Thaw", about: "Its calls are let through again." },
  kill: { label: "Kill", about: "Its calls are refused for good. A killed session cannot be thawed." },
};

export async function session(app, place) {
  const view = new Session(app, place);
  await view.load();
  return {
    title: `Session ${place.id}`, node: view.node, keys: { u: () => go("sessions") },
    refresh: (parts) => (["calls", "sessions", "approvals"].some((part) => parts.has(part)) ? view.load() : null),
  };
}

class Session {
  constructor(app, { id, query }) {
    this.app = app;
    this.path = `/-/sessions/${encodeURIComponent(id)}`;
    this.principal = query.principal;
    this.id = id;
    this.node = h("div", { class: "view" });
  }

  async load() {
    const query = { principal: this.principal };
    const [told, line] = await Promise.all([this.app.api.get(this.path, query), this.app.api.get(`${this.path}/timeline`, query)]);
    const session_ = told.session ?? told;
    this.principal = session_.principal;
    const figure = (value, label) => h("div", {}, h("dd", {}, value), h("dt", {}, label));
    const facts = Object.entries(session_.facts ?? {});
    fill(this.node, h("p", { class: "back" }, h("a", { href: href("sessions") }, "← All sessions")),
      heading(said(this.id), ["Of ", said(session_.principal_name || session_.name || session_.principal), session_.began_at ? [", began ", ago(session_.began_at)] : null], this.actions(session_)),
      h("dl", { class: "figures" }, figure(h("span", { class: `chip ${session_.state}` }, session_.state ?? "active"), "state"), figure(count(session_.calls), "calls"),
        figure(usd(session_.spend_usd), "spent"), figure(session_.labels?.length ? said(session_.labels.join(", ")) : "none", "labels")),
      session_.note ? h("p", {}, "Note: ", said(session_.note), session_.author ? [" (", said(session_.author), ")"] : null) : null,
      facts.length ? h("section", { class: "panel" }, h("h2", {}, "Facts"), layout(Object.fromEntries(facts.map(([name, fact]) => [name, fact?.value === undefined ? fact : fact.value])))) : null,
      h("section", { class: "panel", "aria-labelledby": "line" }, h("h2", { id: "line" }, "Timeline"), timeline(line.timeline ?? line.events ?? [])));
    this.app.tick();
  }

  actions(session_) {
    if (!this.app.can("operate") || session_.state === "killed") return null;
    const offered = session_.state === "frozen" ? ["thaw", "kill"] : ["freeze", "kill"];
    return offered.map((action) => h("button", { type: "button", class: action === "kill" ? "deny" : "", on: { click: () => this.act(action) } }, ACTIONS[action].label));
  }

  async act(action) {
    const { label, about } = ACTIONS[action];
    const note = h("input", { maxlength: "500", "aria-label": "Note" });
    const sure = await this.app.shell.ask(`${label} this session?`, [h("p", {}, about), h("label", { class: "field" }, h("span", {}, "Note"), note)],
      [{ value: "yes", label, kind: action === "kill" ? "deny" : "" }], note);
    if (!sure) return;
    const query = this.principal ? `?principal=${encodeURIComponent(this.principal)}` : "";
    await this.app.attempt(() => this.app.api.post(`${this.path}/${action}${query}`, note.value ? { note: note.value } : {}).then(() => this.load()));
  }
}

function timeline(events) {
  if (!events.length) return h("p", { class: "quiet-text" }, "Nothing is on record of it.");
  return h("ol", { class: "timeline" }, events.map((event) => h("li", { class: event.kind }, clock(event.at), h("div", {}, entry(event)))));
}

/** One thing that happened, by its kind; whatever is new to this page is laid out as it is. */
function entry(event) {
  switch (event.kind) {
    case "call": return call(event);
    case "tool": case "tool_use": return [h("strong", {}, event.via === "model" ? "proposed " : "called "), said(event.tool ?? event.name), event.released === false ? h("span", { class: "chip denied" }, "kept back") : null];
    case "approval": return [h("strong", {}, "approval "), link("approvals", event.approval ?? event.id, event.summary || event.rule), state(event.state)];
    case "vote": return [said(event.name || event.person, { class: "strong" }), event.verdict === "approve" ? " approved " : " denied ", event.approval ? link("approvals", event.approval, "the approval") : null, event.comment ? [": ", said(event.comment)] : null];
    case "state": return [h("span", { class: `chip ${event.state}` }, event.state), event.author ? [" by ", said(event.author)] : null, event.note ? [": ", said(event.note)] : null];
    default: return rest(event);
  }
}

function call(event) {
  return [link("calls", event.call ?? event.id, event.route || event.operation || "call"), " ", decision(event.decision), event.outcome ? h("span", { class: "quiet-text" }, ` ${event.outcome}`) : null,
    event.rule ? [" · ", said(event.rule)] : null, event.cost_usd ? h("span", { class: "cost" }, usd(event.cost_usd)) : null];
}

function rest({ kind, at: _at, at_ns: _ns, author, ...told }) {
  const known = Object.fromEntries(Object.entries(told).filter(([, value]) => value !== null && value !== ""));
  return [h("strong", {}, String(kind).replaceAll("_", " ")), author ? [" by ", said(author)] : null, Object.keys(known).length ? layout(known) : null];
}

function link(view, id, text) {
  return h("a", { href: href(view, id) }, said(text));
}

function state(word) {
  return word ? [" ", h("span", { class: `chip ${word}` }, stateWord(word))] : null;
}

/** A decision as a coloured word. */
export function decision(word) {
  return word ? h("span", { class: `chip ${word === "deny" ? "denied" : word === "held" ? "pending" : "approved"}` }, word) : null;
}
