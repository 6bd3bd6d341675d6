/** People: who may look, approve, operate and administer. */

import { field, h } from "./dom.js";
import { show } from "./keys.js";
import { empty, heading, table } from "./table.js";
import { said } from "./text.js";

const PERMISSIONS = ["view", "approve", "operate", "admin"];

export async function people(app) {
  const node = h("div", { class: "view" });
  const load = async () => {
    const told = await app.api.get("/-/people");
    node.replaceChildren(
      heading(
        "People",
        "Each permission includes those before it: view, approve, operate, admin.",
        h("button", { type: "button", class: "primary", on: { click: () => change(app, null, load) } }, "New person"),
      ),
      told.people.length ? list(app, told.people, load) : nothing(),
    );
  };
  await load();
  return { title: "People", node };
}

function list(app, rows, load) {
  const button = (label, act) => h("button", { type: "button", class: "quiet", on: { click: act } }, label);
  return table(
    [
      {
        head: "Name",
        kind: "main",
        cell: (row) => [
          said(row.name || row.id),
          row.name && row.name !== row.id ? h("span", { class: "quiet-text" }, " ", said(row.id)) : null,
        ],
      },
      { head: "Permission", cell: (row) => row.permission },
      { head: "Roles", cell: (row) => said((row.roles ?? []).join(", ") || "–") },
      { head: "Teams", cell: (row) => said((row.teams ?? []).join(", ") || "–") },
      { head: "State", cell: (row) => h("span", { class: `chip ${off(row) ? "expired" : "active"}` }, row.state) },
      {
        head: "",
        cell: (row) =>
          h(
            "span",
            { class: "hands" },
            button("Change", () => change(app, row, load)),
            button("New token", () => token(app, row)),
            button(off(row) ? "Enable" : "Disable", () => turn(app, row, load)),
          ),
      },
    ],
    rows,
    { caption: "People" },
  );
}

function off(row) {
  return row.state === "disabled";
}

async function change(app, row, load) {
  const text = (value, props = {}) =>
    h("input", { value: value ?? "", maxlength: "200", spellcheck: "false", autocomplete: "off", ...props });
  const id = text(row?.id, { autocapitalize: "none" });
  const [name, email, roles, teams, password] = [
    text(row?.name),
    text(row?.email),
    text(row?.roles?.join(", ")),
    text(row?.teams?.join(", ")),
    text("", { type: "password", autocomplete: "new-password" }),
  ];
  const permission = h(
    "select",
    {},
    PERMISSIONS.map((each) => h("option", { value: each, selected: each === (row?.permission ?? "approve") }, each)),
  );
  const form = [
    row ? null : field("Id", id, "What they log in with."),
    h("div", { class: "pair" }, field("Name", name), field("E-mail", email)),
    field("Permission", permission),
    h("div", { class: "pair" }, field("Roles", roles, "With commas between."), field("Teams", teams, "With commas between.")),
    field("Password", password, row ? "Empty: it stays as it is." : "Empty: they log in with a token, or with your organisation."),
  ];
  if (
    !(await app.shell.ask(
      row ? `Change ${row.name || row.id}` : "New person",
      form,
      [{ value: "yes", label: row ? "Change" : "Add", kind: "approve" }],
      row ? name : id,
    ))
  )
    return;
  const many = (input) =>
    input.value
      .split(",")
      .map((each) => each.trim())
      .filter(Boolean);
  const body = {
    name: name.value.trim(),
    email: email.value.trim(),
    permission: permission.value,
    roles: many(roles),
    teams: many(teams),
    ...(password.value ? { password: password.value } : {}),
  };
  await app.attempt(() =>
    app.api.post(row ? `/-/people/${encodeURIComponent(row.id)}` : "/-/people", row ? body : { id: id.value.trim(), ...body }).then(load),
  );
}

async function token(app, row) {
  const about = h("p", {}, "A token of an earlier time stops. It can do what this person may do.");
  if (!(await app.shell.ask(`New API token for ${row.name || row.id}?`, about, [{ value: "yes", label: "Make it", kind: "approve" }])))
    return;
  await app.attempt(async () => show(app, await app.api.post(`/-/people/${encodeURIComponent(row.id)}/token`)));
}

async function turn(app, row, load) {
  const what = off(row) ? "enable" : "disable";
  const about = off(row) ? "They can log in again." : "Their logins end at once, and their token stops.";
  if (
    !(await app.shell.ask(`${off(row) ? "Enable" : "Disable"} ${row.name || row.id}?`, h("p", {}, about), [
      { value: "yes", label: off(row) ? "Enable" : "Disable", kind: off(row) ? "approve" : "deny" },
    ]))
  )
    return;
  await app.attempt(() => app.api.post(`/-/people/${encodeURIComponent(row.id)}/${what}`).then(load));
}

function nothing() {
  return empty(
    "Nobody but the admin token",
    "Give everybody an account of their own: two votes of one token are one person's. Here, or in a terminal:",
    "lockgate people create alice --permission approve --role finance",
  );
}
