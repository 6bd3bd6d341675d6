/** What came out of approvals: calls that go on without asking, as long as a grant lasts. */

import { h } from "./dom.js";
import { href } from "./router.js";
import { empty, heading, table } from "./table.js";
import { said } from "./text.js";
import { ago, left } from "./when.js";

const SHOWN = 5;

export async function grants(app) {
  const node = h("div", { class: "view" });
  const load = async () => {
    const told = await app.api.get("/-/grants");
    node.replaceChildren(
      heading(
        "Grants",
        "What may go on without asking, for a while. Each came out of an approval.",
        h("a", { class: "button quiet", href: href("approvals") }, "All approvals"),
      ),
      told.grants.length ? list(app, told.grants, load) : nothing(),
    );
  };
  await load();
  return { title: "Grants", node, refresh: (parts) => (parts.has("approvals") ? load() : null) };
}

function list(app, rows, load) {
  return table(
    [
      { head: "Rule", kind: "main", cell: (row) => said(row.rule) },
      {
        head: "For",
        cell: (row) => [
          said(row.principal_name || row.principal),
          row.tool ? [" · ", said(row.tool)] : null,
          row.session ? [" · session ", said(row.session)] : null,
        ],
      },
      { head: "Where", cell: (row) => (row.condition ? h("code", {}, said(row.condition)) : "always") },
      { head: "Uses left", kind: "number", cell: (row) => row.uses ?? "any" },
      { head: "Time left", cell: (row) => (row.revoked_at ? ["revoked ", ago(row.revoked_at)] : lasting(row)) },
      {
        head: "By",
        cell: (row) => [said(row.author), row.ticket ? [" · ", h("a", { href: href("approvals", row.ticket) }, "approval")] : null],
      },
      { head: "Used by", cell: (row) => usedBy(row) },
      { head: "", cell: (row) => (row.live === false || row.revoked_at || !app.can("approve") ? null : revoke(app, row, load)) },
    ],
    rows,
    { caption: "Grants" },
  );
}

/** The latest calls that went by it. */
function usedBy({ calls = [], more_calls: more }) {
  if (!calls.length) return "nothing yet";
  const links = calls.slice(0, SHOWN).map((each) => h("div", {}, h("a", { href: href("calls", each.call) }, ago(each.at))));
  return more || calls.length > SHOWN ? [...links, "and more"] : links;
}

/** How long a grant goes on; one that does not count any more says why. */
function lasting(row) {
  if (row.live !== false) return left(row.expires_at);
  return row.uses === 0 ? "used up" : "over";
}

function revoke(app, row, load) {
  const ask = async () => {
    const sure = await app.shell.ask("Revoke this grant?", h("p", {}, "The next call that the rule holds waits for a person again."), [
      { value: "yes", label: "Revoke", kind: "deny" },
    ]);
    if (sure) await app.attempt(() => app.api.post(`/-/grants/${encodeURIComponent(row.id)}/revoke`).then(load));
  };
  return h("button", { type: "button", class: "quiet", on: { click: ask } }, "Revoke");
}

function nothing() {
  return empty(
    "No grant is in force",
    "Whoever approves an action may allow more like it: so many, for so long, under a condition. Such a grant is listed here, and can be revoked here.",
  );
}
