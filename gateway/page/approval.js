/** One approval: who asks, what exactly, why it waits, who decides, how much time there is, and the decision. */

import { eventWord, gist, stateChip, stateWord } from "./approvals.js";
import { Decision } from "./decide.js";
import { Editor } from "./edit.js";
import { fill, h } from "./dom.js";
import { write } from "./exact.js";
import { layout } from "./layout.js";
import { go, href } from "./router.js";
import { passage, said, size } from "./text.js";
import { demands, votes } from "./votes.js";
import { ago, clock, count, gauge, left, usd } from "./when.js";

const KINDS = {
  request: "a model call",
  tool: "a call of the tool",
  tool_call: "a call, proposed by a model, of the tool",
  response: "a model's answer",
};
const EFFECTS = {
  read: "It only reads.",
  idempotent: "It may be sent again with the same key: it happens once.",
  at_most_once: "It is sent once. If its outcome is lost, a person is asked.",
  model: "A call of a model.",
};

export async function approval(app, place) {
  const view = new Approval(app, place.id);
  await view.load();
  return {
    title: view.ticket.summary || "Approval",
    node: view.node,
    shown: () => app.tick(),
    leave: () => (view.left = true),
    refresh: (parts) => (parts.has("approvals") ? view.load() : null),
    keys: {
      a: () => view.decision.open("approve"),
      d: () => view.decision.open("deny"),
      e: () => view.edit(),
      u: () => go("approvals"),
      j: () => view.next(1),
      k: () => view.next(-1),
    },
  };
}

class Approval {
  constructor(app, id) {
    this.app = app;
    this.id = id;
    this.head = h("header", { class: "ticket" });
    this.action = h("section", { class: "panel action", "aria-labelledby": "what" });
    this.why = h("section", { class: "panel", "aria-labelledby": "why" });
    this.who = h("section", { class: "panel", "aria-labelledby": "who" });
    this.past = h("section", { class: "panel", "aria-labelledby": "past" });
    this.decision = new Decision(
      app,
      () => this.load(),
      () => this.edit(),
    );
    this.node = h(
      "div",
      { class: "view detail" },
      h("div", { class: "back" }, h("a", { href: href("approvals") }, "← All approvals"), this.steps()),
      this.head,
      h(
        "div",
        { class: "columns" },
        h("div", { class: "wide" }, this.action, this.why),
        h("div", { class: "side" }, this.decision.node, this.who, this.past),
      ),
    );
  }

  async load() {
    const told = await this.app.api.get(`/-/approvals/${encodeURIComponent(this.id)}`);
    const ticket = told.approval;
    if (write(ticket) === this.told) return;
    const before = this.ticket;
    this.told = write(ticket);
    this.ticket = ticket;
    this.showHead();
    if (!before) await this.showAction();
    this.showWhy();
    this.showWho();
    this.showPast();
    this.decision.show(ticket);
    this.app.tick();
    if (before && before.state !== ticket.state) this.app.shell.say(`This approval is ${stateWord(ticket.state)} now.`);
  }

  showHead() {
    const { ticket } = this;
    const focused = this.head.contains(document.activeElement);
    const open = ticket.state === "pending";
    const { name, rest } = gist(ticket);
    fill(
      this.head,
      h(
        "div",
        { class: "marks" },
        stateChip(ticket.state),
        ticket.irreversible ? h("span", { class: "chip irreversible" }, "irreversible") : null,
        ticket.mode === "execute"
          ? h("span", { class: "chip", title: "Once approved, the gateway makes the call itself." }, "made by the gateway")
          : null,
        open
          ? h(
              "span",
              { class: "remaining" },
              gauge(ticket.created_at, ticket.expires_at),
              h("strong", {}, left(ticket.expires_at)),
              " left",
            )
          : null,
      ),
      h("h1", { tabindex: "-1" }, said(name)),
      h("p", { class: "gist" }, said(rest)),
      h("p", { class: "sentence" }, this.sentence()),
      this.links(),
    );
    if (focused) this.head.querySelector("h1").focus({ preventScroll: true });
  }

  /** Who asks for what, as a sentence. */
  sentence() {
    const { ticket } = this;
    const by = (name, text, query) => h("a", { href: href("approvals", "", query) }, said(text ?? name));
    return [
      by(ticket.principal, ticket.principal_name || ticket.principal, { principal: ticket.principal, state: "all" }),
      ticket.team ? [" of team ", by(ticket.team, ticket.team, { team: ticket.team, state: "all" })] : null,
      ticket.on_behalf_of ? [", on behalf of ", said(ticket.on_behalf_of, { class: "strong" }), ","] : null,
      ` asks for ${KINDS[ticket.kind] ?? ticket.kind}`,
      ticket.tool ? [" ", said(ticket.tool, { class: "strong" })] : null,
      ticket.route && ticket.route !== ticket.tool ? [" on route ", said(ticket.route, { class: "strong" })] : null,
      ", ",
      ago(ticket.created_at),
      ". ",
      EFFECTS[ticket.effect] ?? null,
    ];
  }

  links() {
    const { ticket } = this;
    const links = [
      ticket.call ? h("a", { href: href("calls", ticket.call, { approval: ticket.id }) }, "The call") : null,
      ticket.session ? h("a", { href: href("sessions", ticket.session, { principal: ticket.principal }) }, "Its session") : null,
      ticket.executed_by && ticket.executed_by !== ticket.call
        ? h("a", { href: href("calls", ticket.executed_by) }, "The call that carried it out")
        : null,
      ticket.edited_from ? h("a", { href: href("approvals", ticket.edited_from) }, "What it was before it was edited") : null,
      ticket.replaced_by ? h("a", { href: href("approvals", ticket.replaced_by) }, "The edited one in its place") : null,
      h("a", { href: href("approvals", "", { shape: ticket.shape, state: "all" }) }, "Others of this shape"),
    ];
    return h("p", { class: "links" }, links);
  }

  /** The exact action. It never changes, so it is laid out once. */
  async showAction() {
    const { ticket } = this;
    const similar = await this.similar();
    const { arguments: given, ...bound } = ticket.action;
    const laidOut = h(
      "div",
      {},
      layout(given, similar),
      h("details", { class: "bound" }, h("summary", {}, "What it is bound to"), layout(filled(bound))),
    );
    const raw = h("pre", { hidden: true, tabindex: "0", "aria-label": "The action as JSON" });
    const turn = h("button", { type: "button", class: "quiet", "aria-pressed": "false" }, "As JSON");
    turn.addEventListener("click", () => {
      if (!raw.firstChild) fill(raw, passage(write(ticket.action)));
      raw.hidden = !raw.hidden;
      laidOut.hidden = !raw.hidden;
      turn.setAttribute("aria-pressed", String(!raw.hidden));
    });
    this.actionBody = h("div", { class: "exact" }, laidOut, raw);
    fill(
      this.action,
      h(
        "div",
        { class: "panelhead" },
        h("h2", { id: "what" }, "What exactly"),
        h("span", { class: "quiet-text" }, size(ticket.body_size ?? 0)),
        turn,
      ),
      this.compared(similar),
      this.actionBody,
      h("p", { class: "digest" }, "This and nothing else is approved: ", h("code", {}, ticket.digest)),
    );
  }

  /** What made it differ from the last one like it: its changes, and what it was like before. */
  async similar() {
    const patch = this.ticket.similar?.patch;
    if (!patch) return {};
    const told = await this.app.api.get(`/-/approvals/${encodeURIComponent(this.ticket.similar.id)}`).catch(() => null);
    return { changes: patch, before: told?.approval.action.arguments };
  }

  compared({ changes }) {
    const { similar } = this.ticket;
    if (!similar) return h("p", { class: "compared" }, "Nothing like it was asked before.");
    const marked = (changes ?? []).filter((each) => each.op !== "test").length;
    const link = h("a", { href: href("approvals", similar.id) }, "the last one like it");
    const when = [" (", stateWord(similar.state), similar.decided_at ? [" ", ago(similar.decided_at)] : null, ")"];
    if (!changes) return h("p", { class: "compared" }, "It is too long to be compared with ", link, when, ".");
    return h(
      "p",
      { class: "compared" },
      marked
        ? [`${count(marked)} ${marked === 1 ? "difference" : "differences"} to `, link, when, ", marked below."]
        : ["The same as ", link, when, "."],
    );
  }

  showWhy() {
    const { ticket } = this;
    const rules = (ticket.rules ?? []).map((rule) =>
      h(
        "div",
        { class: "rule" },
        h("p", {}, said(rule.rule, { class: "strong" }), rule.source ? h("span", { class: "quiet-text" }, " · ", said(rule.source)) : null),
        rule.message ? h("p", {}, said(rule.message)) : null,
        rule.when ? h("pre", { tabindex: "0" }, h("code", {}, said(rule.when))) : null,
        looked(rule),
      ),
    );
    const patch = ticket.patch?.length ? h("details", {}, h("summary", {}, "What an approver has changed"), layout(ticket.patch)) : null;
    fill(
      this.why,
      h("h2", { id: "why" }, "Why it waits"),
      rules.length ? rules : h("p", {}, said(ticket.rule), ": ", said(ticket.message)),
      patch,
      this.session(),
    );
  }

  session() {
    const so_far = this.ticket.session_so_far;
    if (!so_far) return null;
    const figure = (value, label) => h("div", {}, h("dd", {}, value), h("dt", {}, label));
    return h(
      "div",
      { class: "sofar" },
      h("h3", {}, "Its session so far"),
      h(
        "dl",
        { class: "figures" },
        figure(count(so_far.calls), so_far.calls === 1 ? "call" : "calls"),
        figure(usd(so_far.spend_usd), "spent"),
        figure(so_far.state ?? "active", "state"),
        figure(so_far.labels?.length ? said(so_far.labels.join(", ")) : "none", "labels"),
      ),
    );
  }

  showWho() {
    const { ticket } = this;
    fill(
      this.who,
      h("h2", { id: "who" }, "Who decides"),
      demands(ticket),
      votes(ticket.votes),
      ticket.reason ? h("p", {}, "Reason: ", said(ticket.reason)) : null,
    );
  }

  showPast() {
    const history = this.ticket.history ?? [];
    fill(
      this.past,
      h("h2", { id: "past" }, "What happened"),
      h(
        "ol",
        { class: "history" },
        history.map((each) =>
          h(
            "li",
            {},
            clock(each.at),
            " ",
            h("strong", {}, this.edited(each) ? "edited" : eventWord(each.event)),
            each.author ? [" by ", said(this.named(each.author))] : null,
            each.reason ? h("div", { class: "quiet-text" }, said(each.reason)) : null,
          ),
        ),
      ),
    );
  }

  /** What somebody on record is called, as far as it is known here. */
  named(author) {
    return (author === this.ticket.principal && this.ticket.principal_name) || author;
  }

  /** Whether it began with somebody who put it in another one's place. */
  edited(entry) {
    return entry.event === "open" && this.ticket.edited_from && entry.author !== this.ticket.principal;
  }

  /** Edit the arguments in place of the action. */
  edit() {
    if (this.editor || !this.decision.mayEdit) return;
    const close = (edited) => {
      this.editor = null;
      this.decision.node.inert = false;
      this.action.classList.remove("editing");
      editor.node.replaceWith(this.actionBody);
      if (edited) go("approvals", edited.id);
      else this.decision.focus();
    };
    const editor = new Editor(this.app, this.ticket, this.ticket.action.arguments, close);
    this.editor = editor;
    this.decision.node.inert = true; // its buttons would decide on what it was before
    this.action.classList.add("editing");
    this.actionBody.replaceWith(editor.node);
    editor.focus();
  }

  steps() {
    const { queue } = this.app;
    const at = queue.indexOf(this.id);
    if (at < 0 || queue.length < 2) return null;
    const link = (to, label) => (queue[to] ? h("a", { href: href("approvals", queue[to]) }, label) : null);
    return h(
      "span",
      { class: "steps" },
      link(at - 1, "Before"),
      h("span", { class: "quiet-text" }, `${at + 1} of ${queue.length}`),
      link(at + 1, "Next"),
    );
  }

  next(by) {
    const { queue } = this.app;
    const to = queue[queue.indexOf(this.id) + by];
    if (to) go("approvals", to);
  }
}

/** What a rule looks at: the values that this action has there, and what else. */
function looked({ reads = [], values = {} }) {
  const shown = Object.keys(values);
  const rest = reads.filter((name) => !shown.some((each) => each === name || each.startsWith(`${name}.`) || each.startsWith(`${name}[`)));
  return [
    shown.length ? layout(values) : null,
    rest.length ? h("p", { class: "quiet-text" }, shown.length ? "It also looks at " : "It looks at ", said(rest.join(", ")), ".") : null,
  ];
}

/** What of an object says something. */
function filled(value) {
  return Object.fromEntries(Object.entries(value).filter(([, each]) => each !== "" && each !== null));
}
