/** A decision: approve or deny with a comment, with a grant where that is possible; what became of something unknown; several at once. */

import { field, fill, h } from "./dom.js";
import { go, href } from "./router.js";
import { said } from "./text.js";
import { span } from "./when.js";

const LASTING = ["15m", "1h", "8h", "24h", "168h"];
const LASTING_WORDS = { "15m": "15 minutes", "1h": "1 hour", "8h": "8 hours", "24h": "1 day", "168h": "7 days" };
const WORDS = {
  approve: { verb: "Approve", done: "Approved." },
  deny: { verb: "Deny", done: "Denied." },
};

/** The panel beside an approval. `changed` is called when a decision was taken, `edit` when somebody wants to edit. */
export class Decision {
  constructor(app, changed, edit) {
    this.app = app;
    this.changed = changed;
    this.edit = edit;
    this.node = h("section", { class: "panel decision", "aria-labelledby": "decide" });
    this.comment = h("textarea", { rows: "2", maxlength: "2000", id: "comment" });
    this.comment.addEventListener("input", () => app.drafts.set(this.ticket.id, this.comment.value));
  }

  /** Whether whoever looks may propose other arguments. */
  get mayEdit() {
    return this.ticket.state === "pending" && this.app.can("approve") && this.ticket.kind !== "response";
  }

  show(ticket) {
    const told = JSON.stringify([ticket.state, ticket.may_vote, ticket.why_not, ticket.grantable, ticket.result]);
    this.ticket = ticket;
    if (told === this.told) return; // what somebody is writing stays as it is
    this.told = told;
    this.comment.value = this.app.drafts.get(ticket.id) ?? "";
    fill(this.node, h("h2", { id: "decide" }, "Decision"), this.body());
    this.node.classList.toggle("pending", ticket.state === "pending" && ticket.may_vote);
  }

  focus() {
    (this.node.querySelector("button.approve") ?? this.node.querySelector("button"))?.focus();
  }

  body() {
    if (this.ticket.state === "unknown") return this.unknown();
    if (this.ticket.state !== "pending") return [h("p", {}, this.outcome()), this.onward(), this.withdrawal()];
    if (!this.ticket.may_vote) {
      return [
        h("p", { class: "why-not" }, said(this.ticket.why_not || "You may not vote on this.")),
        this.mayEdit ? this.editing() : null,
        this.withdrawal(),
      ];
    }
    this.grant = new GrantForm(this.app, this.ticket);
    return [
      field("Comment", this.comment, "For whoever asked, and for the record."),
      h(
        "div",
        { class: "actions verdict" },
        h("button", { type: "button", class: "deny", on: { click: () => this.press("deny") } }, "Deny"),
        h("button", { type: "button", class: "approve", on: { click: () => this.press("approve") } }, "Approve"),
      ),
      this.extras(),
    ];
  }

  /** What is needed now and then: on a phone it is folded away. */
  extras() {
    const extras = h(
      "div",
      { class: "extras", id: "extras" },
      this.grant.node,
      h("div", { class: "actions" }, this.mayEdit ? this.editing() : null, this.withdrawal()),
    );
    const unfold = h(
      "button",
      { type: "button", class: "quiet unfold-extras", "aria-controls": "extras", "aria-expanded": "false" },
      "More ways to decide",
    );
    unfold.addEventListener("click", () => unfold.setAttribute("aria-expanded", String(extras.classList.toggle("open"))));
    return [unfold, extras];
  }

  editing() {
    return h("button", { type: "button", class: "quiet", on: { click: () => this.edit() } }, "Edit the arguments");
  }

  withdrawal() {
    if (!["pending", "approved"].includes(this.ticket.state) || !this.app.can("operate")) return null;
    return h("button", { type: "button", class: "quiet", on: { click: () => this.withdraw() } }, "Withdraw");
  }

  /** A button of the panel. What cannot be undone is asked about once more. */
  async press(verdict) {
    if (verdict === "approve" && this.ticket.irreversible && !(await this.confirm(verdict))) return;
    await this.vote(verdict);
  }

  /** A key: always with a question, for fingers slip. */
  async open(verdict) {
    if (this.ticket.state !== "pending" || !this.ticket.may_vote) {
      this.app.shell.say(this.ticket.why_not || "There is nothing to decide here.");
    } else if (await this.confirm(verdict)) {
      await this.vote(verdict);
    }
  }

  confirm(verdict) {
    const { verb } = WORDS[verdict];
    const final = verdict === "approve" && this.ticket.irreversible;
    const grant = verdict === "approve" ? this.grant.told() : null;
    const body = [
      h("p", { class: "what" }, said(this.ticket.summary)),
      h("p", {}, "Asked by ", said(this.ticket.principal_name || this.ticket.principal), "."),
      final ? h("p", { class: "warning" }, "Once it is done, nobody can undo it.") : null,
      grant ? h("p", { class: "warning" }, grant) : null,
      this.comment.value ? h("p", {}, "Your comment: ", said(this.comment.value)) : null,
    ];
    return this.app.shell.ask(`${verb} this action?`, body, [{ value: verdict, label: final ? `${verb}, for good` : verb, kind: verdict }]);
  }

  async vote(verdict) {
    const { ticket } = this;
    const grant = verdict === "approve" ? this.grant.value() : null;
    const body = {
      verdict,
      digest: ticket.digest,
      ...(this.comment.value ? { comment: this.comment.value } : {}),
      ...(grant ? { grant } : {}),
    };
    await this.busy(async () => {
      const told = await this.app.api.post(`/-/approvals/${encodeURIComponent(ticket.id)}/vote`, body);
      const open = told.approval.state === "pending";
      this.app.drafts.delete(ticket.id);
      this.app.shell.note(open ? "Your vote is on record. Others have to vote as well." : WORDS[verdict].done);
    });
  }

  async withdraw() {
    const said_ = [h("p", {}, "It is taken out of the queue, and its caller is told. It can be asked for again.")];
    if (!(await this.app.shell.ask("Withdraw this approval?", said_, [{ value: "yes", label: "Withdraw", kind: "deny" }]))) return;
    await this.busy(() =>
      this.app.api.post(
        `/-/approvals/${encodeURIComponent(this.ticket.id)}/withdraw`,
        this.comment.value ? { comment: this.comment.value } : {},
      ),
    );
  }

  /** What became of something that was sent and never answered. */
  unknown() {
    const say = (outcome, label, kind) => h("button", { type: "button", class: kind, on: { click: () => this.resolve(outcome) } }, label);
    const about = h(
      "p",
      {},
      "It was sent, and nobody knows what came of it. Look at the receiving side, then say what you found. It is not sent again.",
    );
    if (!this.app.can("operate")) return [about, h("p", { class: "why-not" }, "Saying so needs the permission operate.")];
    return [
      about,
      field("What you found", this.comment),
      h("div", { class: "actions verdict" }, say("failed", "It did not happen", "deny"), say("succeeded", "It happened", "approve")),
    ];
  }

  async resolve(outcome) {
    if (!this.comment.value.trim()) {
      this.app.shell.note("Say what you found: it stands on record.", "bad");
      this.comment.focus();
      return;
    }
    await this.busy(() =>
      this.app.api.post(`/-/approvals/${encodeURIComponent(this.ticket.id)}/resolve`, { outcome, comment: this.comment.value }),
    );
  }

  async busy(work) {
    const buttons = [...this.node.querySelectorAll("button")];
    for (const button of buttons) button.disabled = true;
    await this.app.attempt(work);
    for (const button of buttons) button.disabled = false;
    await this.app.attempt(() => this.changed());
    this.focus();
  }

  outcome() {
    const { state, result } = this.ticket;
    const words = {
      approved: "Approved. It goes on as soon as its caller is there.",
      executing: "It is being carried out.",
      succeeded: "It was carried out.",
      failed: "It was carried out, and failed.",
      denied: "Denied. It was not sent.",
      expired: "Its time is over. It was not sent.",
      withdrawn: "Withdrawn. It was not sent.",
    };
    return [words[state] ?? state, result ? ` The answer was ${result.status} (${result.content_type}).` : ""];
  }

  /** The way to the next one that waits. */
  onward() {
    const next = this.app.queue.find((id, at) => at > this.app.queue.indexOf(this.ticket.id));
    return next
      ? h("a", { class: "button", href: href("approvals", next) }, "Next")
      : h("button", { type: "button", on: { click: () => go("approvals") } }, "All approvals");
  }
}

/** More like it for a while: a grant that is made with the approval. */
class GrantForm {
  constructor(app, ticket) {
    this.ticket = ticket;
    this.uses = h("input", { type: "number", min: "1", max: "10000", value: "5", inputmode: "numeric" });
    this.lasting = h(
      "select",
      {},
      LASTING.map((each) => h("option", { value: each, selected: each === "1h" }, LASTING_WORDS[each])),
    );
    this.session = h("input", { type: "checkbox", checked: Boolean(ticket.session) });
    this.condition = h("input", {
      spellcheck: "false",
      autocapitalize: "none",
      placeholder: ticket.tool ? "double(tool.args.amount) <= 500.0" : '!texts.exists(text, text.contains("payroll"))',
      class: "code",
    });
    this.note = h("input", { maxlength: "500" });
    this.node =
      ticket.grantable === false
        ? this.refused()
        : h(
            "details",
            { class: "grant" },
            h("summary", {}, "Allow more like it"),
            h("p", { class: "quiet-text" }, "Made with the approval. It can be revoked at any time."),
            h("div", { class: "pair" }, field("How many", this.uses, "Empty for any number."), field("For how long", this.lasting)),
            ticket.session ? h("label", { class: "check" }, this.session, " Only in this session") : null,
            field(
              "Only where",
              this.condition,
              `A CEL condition over what rules read. Empty: every call of ${ticket.tool ? "this tool" : "a model"} that the rule would hold.`,
            ),
            field("Note", this.note),
          );
  }

  refused() {
    return this.ticket.why_not_grantable ? h("p", { class: "quiet-text" }, said(this.ticket.why_not_grantable)) : null;
  }

  /** What is sent, null where no grant is wanted. */
  value() {
    if (!this.node?.open) return null;
    return {
      for: this.lasting.value,
      ...(this.uses.value ? { uses: Number(this.uses.value) } : {}),
      ...(this.ticket.session ? { session: this.session.checked } : {}),
      ...(this.condition.value.trim() ? { condition: this.condition.value.trim() } : {}),
      ...(this.note.value ? { note: this.note.value } : {}),
    };
  }

  /** The same as a sentence. */
  told() {
    const grant = this.value();
    if (!grant) return null;
    const uses = grant.uses ? `up to ${grant.uses} more` : "any number of others";
    return `This also lets ${uses} through without asking, for ${LASTING_WORDS[grant.for]}${grant.session ? ", in this session" : ""}${grant.condition ? `, where ${grant.condition}` : ""}.`;
  }
}

/** Decide on several of one shape. Whether it was done. */
export async function decideAll(app, verdict, rows) {
  const { verb } = WORDS[verdict];
  const comment = h("textarea", { rows: "2", maxlength: "2000" });
  const list = h(
    "ul",
    { class: "chosen", tabindex: "0", "aria-label": "What is decided" },
    rows.map((row) =>
      h(
        "li",
        {},
        said(row.summary),
        h(
          "span",
          { class: "quiet-text" },
          " · ",
          said(row.principal_name || row.principal),
          ` · ${span((Date.parse(row.expires_at) - app.api.now()) / 1_000)} left`,
        ),
      ),
    ),
  );
  const chosen = await app.shell.ask(
    `${verb} these ${rows.length}?`,
    [list, field("Comment", comment)],
    [{ value: verdict, label: `${verb} ${rows.length}`, kind: verdict }],
  );
  if (!chosen) return false;
  return app.attempt(async () => {
    const told = await app.api.post("/-/approvals/votes", {
      verdict,
      approvals: rows.map(({ id, digest }) => ({ id, digest })),
      ...(comment.value ? { comment: comment.value } : {}),
    });
    const failed = told.approvals.filter((each) => !each.ok);
    app.shell.note(`${told.approvals.length - failed.length} of ${rows.length} votes are on record.`, failed.length ? "bad" : "good");
    for (const each of failed.slice(0, 3)) app.shell.note(each.error?.detail ?? each.error ?? "One could not be decided.", "bad");
  });
}
