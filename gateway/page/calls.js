/** Calls, the newest first: who, where to, what was decided, what came of it, what it cost. */

import { h } from "./dom.js";
import { go, href } from "./router.js";
import { decision } from "./session.js";
import { moveFocus } from "./shortcuts.js";
import { empty, heading, table } from "./table.js";
import { said } from "./text.js";
import { ago, ofNs, usd } from "./when.js";

const FILTERS = ["route", "key", "team", "session", "rule", "outcome", "code"];
const LIMIT = 50;

export async function calls(app, place) {
  const node = h("div", { class: "view" });
  const shown = h("div", {});
  const load = async () => {
    const told = await app.api.get("/-/calls", { ...place.query, limit: LIMIT });
    shown.replaceChildren(...body(told.calls, place));
    app.tick();
  };
  node.append(
    heading("Calls", "Everything that passed, or did not. Open one to see why it was decided as it was."),
    filter(place.query),
    shown,
  );
  await load();
  const links = () => [...node.querySelectorAll("td.main a")];
  return {
    title: "Calls",
    node,
    refresh: (parts) => (parts.has("calls") && !place.query.before ? load() : null),
    keys: { j: () => moveFocus(links(), 1), k: () => moveFocus(links(), -1), u: () => go("calls"), "/": () => openFilter(node) },
  };
}

function body(rows, place) {
  if (!rows.length)
    return [Object.keys(place.query).length ? empty("Nothing fits this filter", "Take a part of it away to see more.") : nothing()];
  const list = table(
    [
      { head: "When", kind: "main", cell: (row) => h("a", { href: href("calls", row.id) }, ago(ofNs(row.received_ns))) },
      { head: "Route", cell: (row) => said(row.route || row.operation) },
      { head: "Who", cell: (row) => [said(row.name || row.key), row.team ? [" · ", said(row.team)] : null] },
      { head: "Decision", cell: (row) => [decision(row.decision), row.rule ? [" ", said(row.rule)] : null] },
      { head: "Outcome", cell: (row) => [row.outcome ?? "under way", row.code ? [" · ", said(row.code)] : null] },
      { head: "Target", cell: (row) => (row.target ? said(row.target) : "–") },
      { head: "Cost", kind: "number", cell: (row) => usd(row.cost_usd) },
    ],
    rows,
    { caption: "Calls, the newest first" },
  );
  const last = rows.at(-1).id;
  return rows.length < LIMIT
    ? [list]
    : [
        list,
        h("p", { class: "more" }, h("a", { class: "button", href: href("calls", "", { ...place.query, before: last }) }, "Older ones")),
      ];
}

function filter(query) {
  const inputs = FILTERS.map((name) => [name, h("input", { name, value: query[name] ?? "", spellcheck: "false", autocapitalize: "none" })]);
  const form = h(
    "form",
    { class: "grid" },
    inputs.map(([name, input]) => h("label", {}, h("span", {}, name), input)),
    h("button", { type: "submit" }, "Filter"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    go("calls", "", Object.fromEntries(inputs.map(([name, input]) => [name, input.value.trim()])));
  });
  const chips = FILTERS.filter((name) => query[name]).map((name) =>
    h("a", { class: "chip", href: href("calls", "", { ...query, [name]: "" }) }, `${name}: `, said(query[name]), " ×"),
  );
  return h("div", { class: "filters" }, h("details", { class: "filter" }, h("summary", {}, "Filter"), form), chips);
}

function openFilter(node) {
  node.querySelector("details.filter").open = true;
  node.querySelector("details.filter input").focus();
}

function nothing() {
  return empty(
    "No call yet",
    "Point any client at this gateway: its base URL is this address with /v1 behind it, its key one of yours.",
    `curl ${location.origin}/v1/models -H "Authorization: Bearer lgk_…"`,
  );
}
