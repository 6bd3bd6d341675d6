/** One's own account: what one may do, and another password. */

import { field, fill, h } from "./dom.js";
import { heading } from "./table.js";
import { said } from "./text.js";

const SHORTEST = 12;
const LONGEST = 256;
const WAYS = { password: "your password", token: "a token", oidc: "your organisation" };

export async function account(app) {
  const { me } = app;
  const figure = (value, label) => h("div", {}, h("dd", {}, value), h("dt", {}, label));
  const node = h(
    "div",
    { class: "view" },
    heading("Your account"),
    h(
      "section",
      { class: "panel", "aria-label": "What you may do" },
      h(
        "dl",
        { class: "figures" },
        figure(said(me.id), "id"),
        figure(me.permission, "permission"),
        figure(said(me.roles.join(", ") || "none"), "roles"),
        figure(said(me.teams.join(", ") || "none"), "teams"),
        figure(WAYS[me.method] ?? me.method, "logged in with"),
      ),
    ),
    h("section", { class: "panel", "aria-labelledby": "password" }, h("h2", { id: "password" }, "Password"), me.password ? form(app) : none(me)),
  );
  return { title: "Your account", node };
}

/** Another password. Whoever has left their browser open has not left their password with it: the one of now is asked for. */
function form(app) {
  const secret = (id, autocomplete, limits) => h("input", { id, type: "password", autocomplete, required: true, ...limits });
  const limits = { minlength: String(SHORTEST), maxlength: String(LONGEST) };
  const current = secret("password-current", "current-password");
  const fresh = secret("password-new", "new-password", limits);
  const again = secret("password-again", "new-password", limits);
  const problem = h("p", { class: "problem", role: "alert" });
  const button = h("button", { type: "submit", class: "primary" }, "Change it");
  const wrong = (text, input) => {
    fill(problem, text);
    input?.focus();
  };
  const change = async (event) => {
    event.preventDefault();
    fill(problem);
    if (fresh.value !== again.value) return wrong("The new password is not the same twice.", again);
    button.disabled = true;
    try {
      app.enter(await app.api.post("/-/me/password", { current: current.value, new: fresh.value }));
      app.shell.at("account");
      app.shell.note("Your password is changed. Your other logins have ended.");
      event.target.reset();
    } catch (error) {
      if (error.status === undefined) throw error;
      wrong(error.message, { "/current": current, "/new": fresh }[error.told?.pointer]);
    } finally {
      button.disabled = false;
    }
    return undefined;
  };
  return h(
    "form",
    { class: "narrow", on: { submit: change } },
    h("p", { class: "quiet-text" }, "Your other logins end with it; an API token of yours goes on."),
    h("input", { type: "text", autocomplete: "username", value: app.me.id, hidden: true, readOnly: true }), // for password managers
    field("Current password", current),
    field("New password", fresh, `${SHORTEST} to ${LONGEST} characters; several words are good.`),
    field("The new one once more", again),
    problem,
    button,
  );
}

function none(me) {
  const text =
    me.id === "admin"
      ? "The admin token is nobody's own: it stands in the configuration. Give everybody an account of their own."
      : "You log in without one. Somebody with the permission admin can give your account a password; your organisation looks after its own.";
  return h("p", {}, text);
}
