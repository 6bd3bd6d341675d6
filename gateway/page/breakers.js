/** Breakers: which targets get calls, which do not and why, and the hand that may open or close them. */

import { h } from "./dom.js";
import { empty, heading, table } from "./table.js";
import { said } from "./text.js";
import { count, span } from "./when.js";

const STATES = {
  closed: ["approved", "closed"],
  half_open: ["pending", "half open"],
  open: ["denied", "open"],
  forced_open: ["denied", "open by hand"],
  forced_closed: ["approved", "closed by hand"],
};
const HANDS = {
  open: { label: "Open", about: "It gets no calls until somebody closes it or lets it act by itself." },
  close: { label: "Close", about: "It gets calls whatever happens, until somebody lets it act by itself." },
  auto: { label: "By itself", about: "What it sees decides again." },
};

export async function breakers(app) {
  const node = h("div", { class: "view" });
  const load = async () => {
    const told = await app.api.get("/-/breakers");
    node.replaceChildren(
      heading("Breakers", "A target that fails gets no calls for a while. What was seen is this process's own; the state is everybody's."),
      told.breakers.length
        ? list(app, told.breakers, load)
        : empty(
            "No target",
            "Every target of a route has a breaker. Routes stand in routes/, and this tells whether they can be used:",
            "lockgate check",
          ),
    );
  };
  await load();
  return { title: "Breakers", node, refresh: (parts) => (parts.has("breakers") || parts.has("calls") ? load() : null) };
}

function list(app, rows, load) {
  return table(
    [
      { head: "Target", kind: "main", cell: (row) => said(row.target) },
      {
        head: "State",
        cell: (row) => [
          h("span", { class: `chip ${(STATES[row.state] ?? [row.state])[0]}` }, (STATES[row.state] ?? [row.state, row.state])[1]),
          row.since_s === null ? null : h("span", { class: "quiet-text" }, ` for ${span(row.since_s)}`),
        ],
      },
      {
        head: "Why",
        cell: (row) => [
          row.cause ? said(row.cause) : null,
          row.author ? [" by ", said(row.author)] : null,
          row.note ? [": ", said(row.note)] : null,
          !row.cause && !row.author ? "–" : null,
        ],
      },
      {
        head: "Seen",
        cell: (row) => `${count(row.calls)} calls, ${count(row.failures)} failed${row.slow ? `, ${count(row.slow)} slow` : ""}`,
      },
      {
        head: "First word",
        kind: "number",
        cell: (row) => (row.first_token_s === null ? "–" : `${Math.round(row.first_token_s * 1_000)} ms`),
      },
      {
        head: "By hand",
        cell: (row) =>
          app.can("operate")
            ? h(
                "span",
                { class: "hands" },
                hands(row).map((to) =>
                  h("button", { type: "button", class: "quiet", on: { click: () => set(app, row, to, load) } }, HANDS[to].label),
                ),
              )
            : "–",
      },
    ],
    rows,
    { caption: "Breakers" },
  );
}

function hands(row) {
  return row.state.startsWith("forced") ? ["auto"] : ["open", "close"];
}

async function set(app, row, to, load) {
  const note = h("input", { maxlength: "500" });
  const sure = await app.shell.ask(
    `${HANDS[to].label}: ${row.target}`,
    [h("p", {}, HANDS[to].about), h("label", { class: "field" }, h("span", {}, "Note"), note)],
    [{ value: "yes", label: HANDS[to].label, kind: to === "open" ? "deny" : "approve" }],
    note,
  );
  if (sure) await app.attempt(() => app.api.post("/-/breakers", { target: row.target, state: to, note: note.value }).then(load));
}
