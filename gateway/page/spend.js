/** Spend: what the ledger holds, by day as a chart, by anything else as bars in a table. */

import { dayChart } from "./chart.js";
import { h } from "./dom.js";
import { go, href } from "./router.js";
import { bar, empty, heading, table } from "./table.js";
import { said } from "./text.js";
import { count, usd } from "./when.js";

const GROUPS = ["model", "team", "key", "route", "session", "tool", "org", "run"];
const SPANS = { "24h": "24 hours", "7d": "7 days", "30d": "30 days", "90d": "90 days" };
const LIMIT = 25;
const DAY_S = 86_400;

export async function spend(app, place) {
  const by = GROUPS.includes(place.query.by) ? place.query.by : "model";
  const since = SPANS[place.query.since] ? place.query.since : "30d";
  const [days, groups, teams] = await Promise.all([
    app.api.get("/-/costs", { by: "day", since, limit: 400 }),
    app.api.get("/-/costs", { by, since, limit: LIMIT }),
    by === "model" ? app.api.get("/-/costs", { by: "team", since, limit: 8 }) : null,
  ]);
  const pick = (label, name, choices, chosen) =>
    h(
      "span",
      { class: "pickone" },
      h("label", { for: `pick-${name}` }, label),
      h(
        "select",
        {
          id: `pick-${name}`,
          on: { change: (event) => go("spend", "", { by, since, [name]: event.target.value }) },
        },
        choices.map(([value, word]) => h("option", { value, selected: value === chosen }, word)),
      ),
    );
  const chart = days.lines
    ? dayChart(app, filled(days), `Spend by day, ${usd(days.total_usd)} in all`, (value) => usd(String(value)))
    : null;
  const node = h(
    "div",
    { class: "view" },
    heading(
      "Spend",
      "What the ledger holds: every attempt at its price, to the nano-dollar.",
      pick("Over", "since", Object.entries(SPANS), since),
      pick(
        "By",
        "by",
        GROUPS.map((each) => [each, each]),
        by,
      ),
    ),
    h(
      "p",
      { class: "total" },
      h("strong", {}, usd(days.total_usd)),
      ` in ${SPANS[since]}`,
      days.estimated_nusd ? h("span", { class: "quiet-text" }, `, of it ${usd(days.estimated_usd)} estimated`) : null,
    ),
    chart?.node ?? nothing(),
    days.lines
      ? [
          h("div", { class: "columns even" }, panel(`By ${by}`, by, groups), teams ? panel("By team", "team", teams) : null),
          h("details", { class: "panel" }, h("summary", {}, h("h2", {}, "By day")), list("day", days)),
        ]
      : null,
    h(
      "p",
      { class: "links" },
      h("a", { href: `/-/costs?by=${by}&since=${since}&format=csv`, download: `costs-by-${by}.csv` }, "As a spreadsheet (CSV)"),
    ),
  );
  return { title: "Spend", node, leave: () => chart?.leave() };
}

/** Every day of the time that is asked for, those without spend at zero: a gap in time is a gap in the chart. */
function filled(days) {
  const known = new Map(
    days.groups.filter((each) => each.group).map((each) => [Date.parse(`${each.group}T00:00:00Z`) / 1_000, Number(each.cost_usd)]),
  );
  const first = Math.min(...known.keys());
  const last = Math.floor(Date.parse(days.until_at) / 1_000 / DAY_S) * DAY_S;
  const points = [];
  for (let at = Math.max(first - DAY_S, Math.floor(Date.parse(days.since_at) / 1_000 / DAY_S) * DAY_S); at <= last; at += DAY_S)
    points.push({ at, value: known.get(at) ?? 0 });
  return points;
}

function panel(title, by, told) {
  return h("section", { class: "panel" }, h("h2", {}, title), list(by, told));
}

function list(by, told) {
  const most = Math.max(...told.groups.map((row) => row.cost_nusd), 1);
  return table(
    [
      {
        head: by,
        kind: "main",
        cell: (row) =>
          row.group === null
            ? "all others"
            : row.group === ""
              ? "none"
              : by === "session"
                ? h("a", { href: href("sessions", row.group) }, said(row.group))
                : said(row.group),
      },
      { head: "", kind: "fill", cell: (row) => bar(row.cost_nusd / most) },
      { head: "Cost", kind: "number", cell: (row) => usd(row.cost_usd) },
      { head: "Calls", kind: "number", cell: (row) => count(row.calls) },
    ],
    told.groups,
    { caption: `Costs by ${by}` },
  );
}

function nothing() {
  return empty(
    "Nothing spent yet",
    "What calls cost appears here as soon as one has ended, at the prices of the deployment or the published ones. What a target would cost:",
    "lockgate prices show",
  );
}
