/** Budgets: each account as a bar, with what is used, what is set aside, and when it begins anew. */

import { field, h } from "./dom.js";
import { bar, empty, heading } from "./table.js";
import { said } from "./text.js";
import { left, usd } from "./when.js";

export async function budgets(app) {
  const node = h("div", { class: "view" });
  const load = async () => {
    const told = await app.api.get("/-/budgets", { limit: 200 });
    node.replaceChildren(
      heading("Budgets", "Used is what was spent, set aside is what calls under way may still cost. Both together never pass the limit."),
      ...(told.budgets.length
        ? told.budgets.map((budget) =>
            section(
              app,
              budget,
              told.accounts.filter((each) => each.budget === budget.name),
              load,
            ),
          )
        : [nothing()]),
    );
    app.tick();
  };
  await load();
  return { title: "Budgets", node, refresh: (parts) => (parts.has("calls") ? load() : null) };
}

function section(app, budget, accounts, load) {
  const about = [
    (budget.limit_usd ?? budget.limit) ? `${usd(budget.limit_usd ?? budget.limit)} ` : "",
    `for each ${budget.scope === "all" ? "deployment" : budget.scope}, per ${budget.window}`,
  ];
  return h(
    "section",
    { class: "panel" },
    h(
      "div",
      { class: "panelhead" },
      h("h2", {}, said(budget.name)),
      h("span", { class: "quiet-text" }, about),
      app.can("operate")
        ? h("button", { type: "button", class: "quiet", on: { click: () => raise(app, budget, load) } }, "Raise for a while")
        : null,
    ),
    accounts.length
      ? h("ul", { class: "accounts" }, accounts.map(account))
      : h("p", { class: "quiet-text" }, "Nothing is booked on it in this window."),
  );
}

function account(row) {
  const limit = row.limit_nusd;
  const used = limit ? row.used_nusd / limit : 0;
  const kind = used >= 0.9 ? "last" : row.past_soft_limit ? "low" : "";
  return h(
    "li",
    {},
    h(
      "div",
      { class: "line" },
      said(row.subject || "everything", { class: "strong" }),
      h(
        "span",
        {},
        usd(row.used_usd),
        limit === null ? " used, no limit" : ` of ${usd(row.limit_usd)}`,
        row.used_percent === null ? "" : ` · ${row.used_percent} %`,
      ),
    ),
    limit ? h("div", { class: "doublebar" }, bar((row.used_nusd + row.reserved_nusd) / limit, "reserved"), bar(used, kind)) : null,
    h(
      "div",
      { class: "line quiet-text" },
      h(
        "span",
        {},
        row.reserved_nusd ? `${usd(row.reserved_usd)} set aside` : "nothing set aside",
        row.past_soft_limit ? " · past its soft limit" : "",
      ),
      row.resets_at ? h("span", {}, "begins anew in ", left(row.resets_at, "a moment")) : null,
    ),
  );
}

async function raise(app, budget, load) {
  const by = h("input", { inputmode: "decimal", value: "10.00" });
  const lasting = h("input", { value: "24h" });
  const subject = h("input", { placeholder: "every account" });
  const note = h("input", { maxlength: "500" });
  const sure = await app.shell.ask(
    `Raise ${budget.name} for a while?`,
    [field("By, in USD", by), field("For", lasting, "A duration: 90m, 24h, 7d."), field("Subject", subject), field("Note", note)],
    [{ value: "yes", label: "Raise", kind: "approve" }],
    by,
  );
  if (!sure) return;
  const body = { by: by.value.trim(), for: lasting.value.trim(), subject: subject.value.trim(), note: note.value };
  await app.attempt(() => app.api.post(`/-/budgets/${encodeURIComponent(budget.name)}/raise`, body).then(load));
}

function nothing() {
  return empty(
    "No budget",
    "A budget sets money aside before a call and books its true cost after it. In config.toml:",
    '[budgets.team-month]\nscope = "team"\nlimit = "50.00"\nwindow = "month"',
  );
}
