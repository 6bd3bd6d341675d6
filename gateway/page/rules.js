/** Rules in the order they are asked, with how often each has matched, and what those in shadow would have done. */

import { h } from "./dom.js";
import { layout } from "./layout.js";
import { href } from "./router.js";
import { empty, heading } from "./table.js";
import { said } from "./text.js";
import { count } from "./when.js";

const WOULD = {
  deny: "would have denied",
  require_approval: "would have held",
  redact: "would have redacted",
  set: "would have changed",
  route: "would have rerouted",
  limit: "would have limited",
  allow: "would have allowed",
  log: "would have labelled",
};
const DID = {
  deny: "denied",
  require_approval: "held",
  redact: "redacted",
  set: "changed",
  route: "rerouted",
  limit: "looked at",
  allow: "allowed",
  log: "labelled",
};
const KIND = { deny: "denied", require_approval: "pending", allow: "approved" };

export async function rules(app) {
  const node = h("div", { class: "view" });
  const load = async () => {
    const told = await app.api.get("/-/rules");
    node.replaceChildren(
      heading("Rules", ["In force: ", h("code", {}, told.bundle), ". Counted since this gateway started, over all its workers."]),
      told.stale
        ? h(
            "p",
            { class: "warning" },
            "The files on disk could not be loaded; what was in force stays so. ",
            said(typeof told.stale === "string" ? told.stale : (told.stale.message ?? "")),
          )
        : "",
      told.rules.length ? h("ul", { class: "rules" }, told.rules.map(rule)) : nothing(),
    );
  };
  await load();
  return { title: "Rules", node, refresh: (parts) => (parts.has("calls") ? load() : null) };
}

function rule(row) {
  const parts = [
    ["match", row.match],
    ["approval", row.approval],
  ].filter(([, value]) => value && Object.keys(value).length);
  return h(
    "li",
    { class: `panel ${row.mode}` },
    h(
      "div",
      { class: "panelhead" },
      h("h2", {}, said(row.rule)),
      h("span", { class: `chip ${KIND[row.effect] ?? ""}` }, row.effect.replace("_", " ")),
      h("span", { class: "chip" }, row.phase.replace("_", " ")),
      row.mode === "enforce" ? null : h("span", { class: `chip ${row.mode}` }, row.mode),
      row.team ? h("span", { class: "chip" }, "team ", said(row.team)) : null,
      h("span", { class: "quiet-text source" }, said(row.source)),
    ),
    row.message ? h("p", {}, said(row.message)) : null,
    row.when ? h("pre", { tabindex: "0" }, h("code", {}, said(row.when))) : null,
    parts.length ? h("details", {}, h("summary", {}, parts.map(([name]) => name).join(" and ")), layout(Object.fromEntries(parts))) : null,
    h("p", { class: "counts" }, row.mode === "off" ? "Off: it is checked, and never asked." : tally(row)),
  );
}

function tally(row) {
  const shadow = row.mode === "shadow";
  const matched = shadow ? row.shadow_matched : row.matched;
  const failed = shadow ? row.shadow_failed : row.failed;
  return [
    h("a", { href: href("calls", "", { rule: row.rule }) }, h("strong", {}, count(matched))),
    ` ${(shadow ? WOULD : DID)[row.effect] ?? "matched"}`,
    failed ? [" · ", h("strong", { class: "bad" }, count(failed)), " could not be evaluated"] : null,
    !shadow && row.shadow_matched ? ` · ${count(row.shadow_matched)} while it was in shadow` : null,
  ];
}

function nothing() {
  return empty(
    "No rule",
    "Without rules everything is let through that a key may use. Rules are TOML in policies/; the gateway takes changes as they are saved.",
    '[[rule]]\nid = "interns-use-small-models"\nmatch = { teams = ["interns"] }\nwhen = \'!route.startsWith("small-")\'\neffect = "deny"\nmessage = "Interns use the small models."',
  );
}
