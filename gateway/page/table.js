/** A table that becomes a list of cards on a phone. */

import { h } from "./dom.js";

/** `columns` are `{head, cell(row), kind}`; kind `number` stands to the right, `main` is the card's title. */
export function table(columns, rows, { caption, row: props } = {}) {
  const head = h(
    "tr",
    { role: "row" },
    columns.map((column) => h("th", { scope: "col", role: "columnheader", class: column.kind }, column.head)),
  );
  const body = rows.map((row) =>
    h(
      "tr",
      { role: "row", ...props?.(row) },
      columns.map((column) =>
        h("td", { role: "cell", class: column.kind, data: { head: column.head } }, h("span", { class: "cell" }, column.cell(row))),
      ),
    ),
  );
  return h(
    "table",
    { role: "table" },
    caption ? h("caption", {}, caption) : null,
    h("thead", { role: "rowgroup" }, head),
    h("tbody", { role: "rowgroup" }, body),
  );
}

/** What stands where there is nothing to show: what would be here, and how it comes here. */
export function empty(title, about, command) {
  return h(
    "section",
    { class: "nothing" },
    h("h2", {}, title),
    h("p", {}, about),
    command ? h("pre", { tabindex: "0" }, h("code", {}, command)) : null,
  );
}

/** A heading of a view with what can be done beside it. */
export function heading(title, about, ...actions) {
  return h(
    "header",
    { class: "heading" },
    h("div", {}, h("h1", { tabindex: "-1" }, title), about ? h("p", {}, about) : null),
    actions.length ? h("div", { class: "actions" }, actions) : null,
  );
}

/** A bar with its share of the whole, for eyes; the figure stands beside it. */
export function bar(share, kind = "") {
  return h(
    "span",
    { class: `bar ${kind}`.trim(), "aria-hidden": "true", vars: { share: String(Math.min(1, Math.max(0, share || 0))) } },
    h("i", {}),
  );
}
