/** Sessions: the calls of one conversation or agent, the latest first. */

import { h } from "./dom.js";
import { go, href } from "./router.js";
import { moveFocus } from "./shortcuts.js";
import { empty, heading, table } from "./table.js";
import { said } from "./text.js";
import { ago, count, usd } from "./when.js";

const LIMIT = 50;

export async function sessions(app, place) {
  const node = h("div", { class: "view" });
  const load = async () => {
    const told = await app.api.get("/-/sessions", { ...place.query, limit: LIMIT });
    node.replaceChildren(heading("Sessions", "The calls of one conversation or agent, over time."), ...body(told, place));
    app.tick();
  };
  await load();
  return {
    title: "Sessions",
    node,
    refresh: (parts) => (parts.has("calls") || parts.has("sessions") ? load() : null),
    keys: {
      j: () => moveFocus([...node.querySelectorAll("td.main a")], 1),
      k: () => moveFocus([...node.querySelectorAll("td.main a")], -1),
      u: () => go("sessions"),
    },
  };
}

function body(told, place) {
  if (!told.sessions.length) return [place.query.after ? h("p", {}, "There are no more.") : nothing()];
  const rows = table(
    [
      {
        head: "Session",
        kind: "main",
        cell: (row) => h("a", { href: href("sessions", row.id, { principal: row.principal }) }, said(row.id)),
      },
      { head: "State", cell: (row) => h("span", { class: `chip ${row.state}` }, row.state) },
      { head: "Principal", cell: (row) => [said(row.principal_name || row.principal), row.team ? [" · ", said(row.team)] : null] },
      { head: "Calls", kind: "number", cell: (row) => count(row.calls) },
      { head: "Spent", kind: "number", cell: (row) => usd(row.spend_usd) },
      { head: "Labels", cell: (row) => (row.labels?.length ? said(row.labels.join(", ")) : "–") },
      { head: "Last call", cell: (row) => ago(row.last_at) },
    ],
    told.sessions,
    { caption: "Sessions, the latest first" },
  );
  const more = told.next
    ? h("p", { class: "more" }, h("a", { class: "button", href: href("sessions", "", { ...place.query, after: told.next }) }, "Older ones"))
    : null;
  return more ? [rows, more] : [rows];
}

function nothing() {
  return empty(
    "No session yet",
    "A call is part of a session when it says so, or when its conversation can be read from what its client sends anyway:",
    'client.chat.completions.create(…, extra_headers={"X-Lockgate-Session": "invoice-run-7"})',
  );
}
