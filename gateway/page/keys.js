/** Virtual keys: who may call. A key is shown once, when it is made. */

import { field, h } from "./dom.js";
import { empty, heading, table } from "./table.js";
import { said } from "./text.js";
import { ago, left } from "./when.js";

export async function keys(app) {
  const node = h("div", { class: "view" });
  const load = async () => {
    const told = await app.api.get("/-/keys");
    const make = app.can("admin")
      ? h("button", { type: "button", class: "primary", on: { click: () => create(app, load) } }, "New key")
      : null;
    node.replaceChildren(
      heading("Keys", "What callers present. The gateway keeps a hash, so nobody can read a key here.", make),
      told.keys.length ? list(app, told.keys, load) : nothing(),
    );
    app.tick();
  };
  await load();
  return { title: "Keys", node };
}

function list(app, rows, load) {
  return table(
    [
      { head: "Name", kind: "main", cell: (row) => said(row.name) },
      { head: "Id", cell: (row) => h("code", {}, row.id) },
      { head: "State", cell: (row) => h("span", { class: `chip ${row.state === "live" ? "approved" : "expired"}` }, row.state) },
      {
        head: "Team",
        cell: (row) => [said(row.team ?? "–"), row.org ? [" · ", said(row.org)] : null, row.owner ? [" · of ", said(row.owner)] : null],
      },
      { head: "Roles", cell: (row) => said(row.roles.join(", ") || "–") },
      { head: "Routes", cell: (row) => said(row.routes.join(", ")) },
      { head: "Made", cell: (row) => ago(row.created) },
      { head: "Expires", cell: (row) => (row.expires ? ["in ", left(row.expires)] : "never") },
      {
        head: "",
        cell: (row) =>
          row.state === "live" && app.can("admin")
            ? h("span", { class: "hands" }, act(app, row, "rotate", load), act(app, row, "revoke", load))
            : null,
      },
    ],
    rows,
    { caption: "Keys" },
  );
}

const ACTS = {
  rotate: { label: "Rotate", about: "It gets a new secret; the old one stops at once." },
  revoke: { label: "Revoke", about: "It stops for good. Whoever calls with it is refused within a second." },
};

function act(app, row, what, load) {
  const { label, about } = ACTS[what];
  const ask = async () => {
    if (
      !(await app.shell.ask(`${label} the key ${row.name}?`, h("p", {}, about), [
        { value: "yes", label, kind: what === "revoke" ? "deny" : "approve" },
      ]))
    )
      return;
    await app.attempt(async () => {
      const told = await app.api.post(`/-/keys/${encodeURIComponent(row.id)}/${what}`);
      await load();
      if (told.key) await show(app, told);
    });
  };
  return h("button", { type: "button", class: "quiet", on: { click: ask } }, label);
}

async function create(app, load) {
  const [name, team, org, owner, roles, routes, expires] = ["", "", "", "", "", "*", ""].map((value) =>
    h("input", { value, maxlength: "200", spellcheck: "false", autocomplete: "off" }),
  );
  const form = [
    field("Name", name, "What it is for, so that people recognise it."),
    h("div", { class: "pair" }, field("Team", team), field("Organisation", org)),
    h("div", { class: "pair" }, field("Roles", roles, "With commas between."), field("Routes", routes, "Globs, with commas between.")),
    field("Owner", owner, "The account of the person whose it is: they may not approve what it asks for."),
    field("Expires", expires, "A duration (30d) or a date. Empty: never."),
  ];
  if (!(await app.shell.ask("New key", form, [{ value: "yes", label: "Make it", kind: "approve" }], name))) return;
  const many = (input) =>
    input.value
      .split(",")
      .map((each) => each.trim())
      .filter(Boolean);
  await app.attempt(async () => {
    const told = await app.api.post("/-/keys", {
      name: name.value,
      team: team.value.trim(),
      org: org.value.trim(),
      roles: many(roles),
      routes: many(routes),
      owner: owner.value.trim(),
      ...(expires.value.trim() ? { expires: expires.value.trim() } : {}),
    });
    for (const warning of told.warnings) app.shell.note(warning, "bad");
    await load();
    await show(app, told);
  });
}

/** Show a secret, once. */
export function show(app, told) {
  const text = h("input", {
    value: told.key ?? told.token,
    readOnly: true,
    class: "code",
    "aria-label": "The secret",
    on: { focus: (event) => event.target.select() },
  });
  return app.shell.ask(
    "Copy it now",
    [h("p", {}, told.note ?? "It is shown this once."), text],
    [{ value: "done", label: "I have it", kind: "approve" }],
    text,
  );
}

function nothing() {
  return empty(
    "No key yet",
    "Every caller needs one. It is made here, or in a terminal:",
    "lockgate keys create --name my-app --team my-team",
  );
}
