/** One call explained: what was decided and by which rules, what would have to change, the way it took, what it said. */

import { h } from "./dom.js";
import { layout } from "./layout.js";
import { go, href } from "./router.js";
import { decision } from "./session.js";
import { heading, table } from "./table.js";
import { passage, said } from "./text.js";
import { ago, ofNs, usd } from "./when.js";

export async function call(app, place) {
  const path = `/-/calls/${encodeURIComponent(place.id)}`;
  const found = await Promise.all([app.api.get(path), app.api.get(`${path}/explain`)]).catch((error) => {
    if (error.status !== 404 || !place.query.approval) throw error;
    return null;
  });
  if (!found) return waits(place);
  const [row, told] = found;
  const node = h(
    "div",
    { class: "view" },
    h("p", { class: "back" }, h("a", { href: href("calls") }, "← All calls")),
    heading(
      ["Call on ", said(row.route || row.operation)],
      [
        said(row.name || row.key),
        row.team ? [" · ", said(row.team)] : null,
        ", ",
        ago(ofNs(row.received_ns)),
        row.session ? [" · ", h("a", { href: href("sessions", row.session, { principal: row.key }) }, "its session")] : null,
        " · ",
        h("code", {}, row.id),
      ],
    ),
    h(
      "p",
      { class: "verdictline" },
      decision(told.decision),
      " ",
      told.rule ? ["by rule ", said(told.rule, { class: "strong" })] : "no rule stopped it",
      "; ",
      said(told.answer?.said),
      ". ",
      usd(row.cost_usd),
    ),
    told.message ? h("p", {}, said(told.message)) : null,
    row.grants?.length ? h("p", {}, h("a", { href: href("grants") }, "A grant"), " let it go on: ", h("code", {}, row.grants.join(", "))) : null,
    changes(told),
    rules("Rules that contributed", told.rules),
    told.later?.map(later),
    attempts(told),
    bodies(row),
  );
  return { title: `Call ${place.id}`, node, keys: { u: () => go("calls") } };
}

/** A call is on record once it has ended: until then its approval is what there is of it. */
function waits(place) {
  const approval = h("a", { href: href("approvals", place.query.approval) }, "its approval");
  return {
    title: "A call that waits",
    node: h("section", { class: "nothing" }, h("h1", { tabindex: "-1" }, "This call still waits"), h("p", {}, "It is on record once it has ended. See ", approval, ".")),
    keys: { u: () => go("approvals", place.query.approval) },
  };
}

function changes(told) {
  if (!told.change?.length) return null;
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "What would have to change"),
    h(
      "ul",
      {},
      told.change.map((each) => h("li", {}, said(each))),
    ),
  );
}

function rules(title, list) {
  if (!list?.length) return null;
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, title),
    list.map((rule) =>
      h(
        "div",
        { class: "rule" },
        h(
          "p",
          {},
          said(rule.rule, { class: "strong" }),
          " ",
          h("span", { class: "chip" }, rule.effect),
          rule.shadow ? h("span", { class: "chip" }, "shadow") : null,
          rule.decisive ? h("span", { class: "chip denied" }, "decided") : null,
          h("span", { class: "quiet-text" }, ` ${rule.verdict} · `, said(rule.source)),
        ),
        rule.message ? h("p", {}, said(rule.message)) : null,
        rule.when ? h("pre", { tabindex: "0" }, h("code", {}, said(rule.when))) : null,
        Object.keys(rule.values ?? {}).length ? layout(rule.values) : null,
      ),
    ),
  );
}

function later(told) {
  return [
    h("h2", {}, told.phase.replace("_", " "), told.subject ? [": ", said(told.subject)] : null),
    h("p", { class: "verdictline" }, decision(told.decision), " ", said(told.rule)),
    changes(told),
    rules("Rules", told.rules),
  ];
}

function attempts(told) {
  if (!told.attempts?.length) return null;
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "The way it took"),
    table(
      [
        { head: "Target", kind: "main", cell: (row) => said(row.target) },
        { head: "Why", cell: (row) => said(row.said) },
        {
          head: "End",
          cell: (row) => [
            row.end,
            row.cause ? [" · ", said(row.cause)] : null,
            row.message ? h("div", { class: "quiet-text" }, said(row.message)) : null,
          ],
        },
        { head: "Took", kind: "number", cell: (row) => (row.ms === null ? "–" : `${row.ms} ms`) },
        { head: "Cost", kind: "number", cell: (row) => usd(row.cost_usd) },
      ],
      told.attempts,
      { caption: "Attempts" },
    ),
  );
}

function bodies(row) {
  const part = (title, body) =>
    body === null || body === undefined ? null : h("details", { class: "panel" }, h("summary", {}, h("h2", {}, title)), shown(body));
  return [part("Request", row.request), part("Response", row.response)];
}

/** A body as it was kept: JSON, or text. */
function shown(body) {
  return typeof body === "string" ? passage(body) : layout(body);
}
