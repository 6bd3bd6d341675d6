/** The door: name and password, a token, or an identity provider. It stands over the page, so that nobody loses their place. */

import { field, fill, h } from "./dom.js";

const PLACE = "lockgate-place"; // where somebody was before they went to their identity provider

/** Show the door until somebody is in; what the gateway says of them. */
export function logIn(app, why) {
  const door = document.getElementById("door");
  if (app.door) return app.door;
  app.door = new Promise((resolve) => {
    open(app, door, why, (me) => {
      fill(door);
      document.getElementById("frame").inert = false;
      app.door = null;
      resolve(me);
    });
  });
  return app.door;
}

/** Go back to where somebody was before their identity provider sent them here. */
export function returnToPlace() {
  const place = sessionStorage.getItem(PLACE);
  sessionStorage.removeItem(PLACE);
  if (place && !location.hash) history.replaceState(null, "", place);
}

async function open(app, door, why, done) {
  const methods = await app.api.send("GET", "/-/login/methods").catch(() => ({ password: true, oidc: null }));
  const problem = h("p", { class: "problem", role: "alert" });
  const submit = (given) => async (event) => {
    event.preventDefault();
    const button = event.target.querySelector("button");
    button.disabled = true;
    fill(problem);
    try {
      done(await app.api.send("POST", "/-/login", given()));
    } catch (error) {
      fill(problem, error.message);
    }
    button.disabled = false;
  };
  document.getElementById("frame").inert = true;
  const forms = [organisation(methods.oidc), methods.password ? person(submit) : null, token(submit, !methods.password)];
  fill(
    door,
    h(
      "section",
      { class: "door", "aria-labelledby": "door-title" },
      h("img", { src: "/-/admin/icon.svg", alt: "", width: "44", height: "44" }),
      h("h1", { id: "door-title" }, "Lockgate"),
      h("p", { class: "why" }, why ?? "Log in to see what waits for a decision."),
      problem,
      forms,
    ),
  );
  door.querySelector("input")?.focus();
}

function person(submit) {
  const name = h("input", {
    id: "login-name",
    name: "username",
    autocomplete: "username",
    required: true,
    autocapitalize: "none",
    spellcheck: "false",
  });
  const password = h("input", {
    id: "login-password",
    type: "password",
    name: "password",
    autocomplete: "current-password",
    required: true,
  });
  return h(
    "form",
    { on: { submit: submit(() => ({ name: name.value, password: password.value })) } },
    field("Name", name),
    field("Password", password),
    h("button", { type: "submit", class: "primary" }, "Log in"),
  );
}

function token(submit, alone) {
  const text = h("input", { id: "login-token", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
  const form = h(
    "form",
    { on: { submit: submit(() => ({ token: text.value.trim() })) } },
    field("Token", text, "The admin token that `lockgate init` showed, or an API token of your own (lgp_…)."),
    h("button", { type: "submit", class: alone ? "primary" : "" }, "Log in with the token"),
  );
  return alone ? form : h("details", { class: "other" }, h("summary", {}, "Log in with a token"), form);
}

function organisation(oidc) {
  if (!oidc) return null;
  return h(
    "a",
    { class: "button primary wide", href: "/-/oidc/begin", on: { click: () => sessionStorage.setItem(PLACE, location.hash) } },
    oidc.label,
  );
}
