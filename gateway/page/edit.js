/** Other arguments for an action: a text that has to be JSON, with what it changes told while it is written. An edit is a new action. */

import { field, fill, h } from "./dom.js";
import { equal, pointed, read, step, write } from "./exact.js";
import { brief } from "./layout.js";
import { escaped, said } from "./text.js";

const MOST_SHOWN = 20;
const WAIT_MS = 150; // between the last key and the look at the text

export class Editor {
  /** `done` gets the edited approval, or nothing where somebody has thought better of it. */
  constructor(app, ticket, original, done) {
    this.app = app;
    this.ticket = ticket;
    this.original = original;
    this.done = done;
    this.text = h("textarea", {
      class: "code",
      rows: String(Math.min(30, write(original).split("\n").length + 1)),
      spellcheck: "false",
      autocapitalize: "none",
      value: escaped(write(original)),
    });
    this.comment = h("input", { maxlength: "2000" });
    this.verdict = h("div", { class: "checked", role: "status" });
    this.propose = h("button", { type: "button", on: { click: () => this.send(false) } }, "Propose");
    this.approve = h("button", { type: "button", class: "approve", on: { click: () => this.send(true) } }, "Propose and approve");
    this.node = h(
      "div",
      { class: "editor" },
      h(
        "p",
        {},
        "What you write becomes a new action with its own digest. It is checked against the tool's schema and the rules again, and its caller is told what was changed.",
      ),
      field("Arguments", this.text),
      this.verdict,
      field("Comment", this.comment),
      h(
        "div",
        { class: "actions" },
        h("button", { type: "button", class: "quiet", on: { click: () => done(null) } }, "Leave it as it was"),
        this.propose,
        ticket.may_vote ? this.approve : null,
      ),
    );
    this.text.addEventListener("input", () => {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.check(), WAIT_MS);
    });
    this.check();
  }

  focus() {
    this.text.focus();
    this.text.setSelectionRange(0, 0);
  }

  /** Read the text: what is wrong with it, or what it changes. */
  check() {
    this.value = undefined;
    try {
      const value = read(this.text.value);
      if (value === null || typeof value !== "object" || Array.isArray(value)) throw new SyntaxError("Arguments are an object: { … }.");
      this.value = value;
    } catch (error) {
      fill(this.verdict, h("p", { class: "problem" }, said(`This is not JSON: ${error.message}`)));
    }
    const changes = this.value ? differences(this.original, this.value) : [];
    if (this.value) fill(this.verdict, told(changes));
    this.text.setAttribute("aria-invalid", String(!this.value));
    for (const button of [this.propose, this.approve]) button.disabled = !changes.length;
  }

  async send(approve) {
    this.check();
    if (!this.value) return;
    if (
      approve &&
      this.ticket.irreversible &&
      !(await this.app.shell.ask("Approve the edited action?", h("p", { class: "warning" }, "Once it is done, nobody can undo it."), [
        { value: "yes", label: "Approve, for good", kind: "approve" },
      ]))
    )
      return;
    const body = {
      digest: this.ticket.digest,
      arguments: this.value,
      approve,
      ...(this.comment.value ? { comment: this.comment.value } : {}),
    };
    await this.app.attempt(async () => {
      const { approval } = await this.app.api.post(`/-/approvals/${encodeURIComponent(this.ticket.id)}/edit`, body);
      this.app.shell.note(approval.state === "pending" ? "The edited action waits for its votes." : "The edited action is approved.");
      this.done(approval);
    });
  }
}

/** Where two values differ: pointers, with what was there and what is. */
export function differences(before, after, at = "") {
  if (equal(before, after)) return [];
  if (!branching(before) || !branching(after) || Array.isArray(before) !== Array.isArray(after)) return [{ at, before, after }];
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])];
  return names.flatMap((name) => differences(own(before, name), own(after, name), step(at, name)));
}

function own(value, name) {
  return pointed(value, step("", name));
}

function branching(value) {
  return value !== null && typeof value === "object" && value.constructor?.name !== "Exact";
}

function told(changes) {
  if (!changes.length) return h("p", { class: "quiet-text" }, "Nothing is changed yet.");
  const rows = changes
    .slice(0, MOST_SHOWN)
    .map((each) =>
      h(
        "li",
        {},
        said(each.at, { class: "strong" }),
        ": ",
        each.before === undefined ? "new, " : [h("del", {}, brief(each.before)), " → "],
        each.after === undefined ? "taken out" : brief(each.after),
      ),
    );
  return [
    h("p", {}, changes.length === 1 ? "This changes one thing:" : `This changes ${changes.length} things:`),
    h("ul", {}, rows),
    changes.length > MOST_SHOWN ? h("p", { class: "quiet-text" }, `and ${changes.length - MOST_SHOWN} more`) : null,
  ];
}
