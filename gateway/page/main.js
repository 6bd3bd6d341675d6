/** The page's beginning: the one place that knows every part. */

import { account } from "./account.js";
import { Api } from "./api.js";
import { approval } from "./approval.js";
import { approvals } from "./approvals.js";
import { breakers } from "./breakers.js";
import { budgets } from "./budgets.js";
import { call } from "./call.js";
import { calls } from "./calls.js";
import { fill, h } from "./dom.js";
import { grants } from "./grants.js";
import { keys } from "./keys.js";
import { Live } from "./live.js";
import { logIn, returnToPlace } from "./login.js";
import { people } from "./people.js";
import { placed } from "./router.js";
import { rules } from "./rules.js";
import { session } from "./session.js";
import { sessions } from "./sessions.js";
import { Shell } from "./shell.js";
import { Shortcuts } from "./shortcuts.js";
import { spend } from "./spend.js";
import { Theme } from "./theme.js";
import { tick } from "./when.js";

const PERMISSIONS = ["view", "approve", "operate", "admin"];
const FIRST = "approvals";
// Each view by its place, in the order of the navigation. With an id it is `one`; `within` says beside which link it stands.
const VIEWS = {
  approvals: { label: "Approvals", show: approvals, one: approval },
  sessions: { label: "Sessions", show: sessions, one: session },
  calls: { label: "Calls", show: calls, one: call },
  spend: { label: "Spend", show: spend },
  budgets: { label: "Budgets", show: budgets },
  breakers: { label: "Breakers", show: breakers },
  keys: { label: "Keys", show: keys },
  rules: { label: "Rules", show: rules },
  people: { label: "People", show: people, need: "admin" },
  grants: { show: grants, within: "approvals" },
  account: { show: account },
};

class App {
  constructor() {
    this.me = null;
    this.view = null;
    this.door = null;
    this.queue = []; // ids of the approvals that were listed last, for the way to the next one
    this.drafts = new Map(); // what somebody has begun to write, by what it is about
    this.theme = new Theme(document.documentElement);
    this.api = new Api(() => this.again());
    this.live = new Live(() => this.checkLogin());
    this.shell = new Shell(this, VIEWS);
    this.shortcuts = new Shortcuts(this);
    this.loads = 0;
    this.stale = new Set(); // what has changed since it was looked at
    this.looking = false;
    this.returning = null;
  }

  /** Begin: whoever is logged in goes on, anybody else meets the door. */
  async start() {
    returnToPlace();
    const me = await this.api.send("GET", "/-/me").catch((error) => (error.status === 401 ? null : Promise.reject(error)));
    this.enter(me ?? (await logIn(this)));
    this.live.addEventListener("changed", (event) => this.changed(event.detail));
    addEventListener("hashchange", () => this.show());
    document.addEventListener("visibilitychange", () => !document.hidden && this.tick());
    setInterval(() => this.tick(), 1_000);
    await this.show();
  }

  /** Somebody is logged in. */
  enter(me) {
    this.me = me;
    this.api.csrf = me.csrf ?? null;
    this.shell.welcome(me);
    this.live.open();
    this.count();
  }

  /** The login is over: show the door over the page, and go on where it was. Whoever asks meanwhile waits for the same. */
  again() {
    this.returning ??= this.comeBack().finally(() => (this.returning = null));
    return this.returning;
  }

  async comeBack() {
    const before = this.me.id;
    this.live.close();
    const me = await logIn(this, "Your login has ended. Log in again to go on where you were.");
    if (me.id !== before) location.reload(); // what is shown was for somebody else's eyes
    this.enter(me);
    this.shell.at(this.place.view);
  }

  async checkLogin() {
    const me = await this.api.send("GET", "/-/me").catch((error) => error);
    if (me.status === 401) {
      await this.again();
      await this.refresh(new Set(["approvals", "calls", "sessions", "breakers"]));
    } else {
      setTimeout(() => this.live.source?.readyState === EventSource.CLOSED && this.live.open(), 5_000);
    }
  }

  async logOut() {
    this.live.close();
    await this.api.send("POST", "/-/logout", {}).catch(() => null);
    location.reload();
  }

  /** Whether whoever is logged in has at least this permission. */
  can(need) {
    return PERMISSIONS.indexOf(this.me.permission) >= PERMISSIONS.indexOf(need);
  }

  /** Where the address says we are; a view that there is, whatever it says. */
  get place() {
    const place = placed(location.hash);
    return Object.hasOwn(VIEWS, place.view) ? place : { view: FIRST, id: "", query: {} };
  }

  /** Show the view that the address names. The last address wins. */
  async show() {
    const place = this.place;
    const known = VIEWS[place.view];
    const load = (this.loads += 1);
    this.view?.leave?.();
    this.view = null;
    this.shell.at(place.view);
    this.shell.nodes.main.setAttribute("aria-busy", "true");
    const view = await (place.id && known.one ? known.one : known.show)(this, place).catch((error) => failed(error));
    if (load !== this.loads) return;
    this.view = view;
    fill(this.shell.nodes.main, view.node);
    this.shell.nodes.main.removeAttribute("aria-busy");
    this.shell.title(view.title);
    this.tick();
    if (!this.door) (view.focus?.() ?? view.node.querySelector("h1"))?.focus({ preventScroll: true });
    scrollTo(0, 0);
    view.shown?.();
  }

  /** Something has changed at the gateway. One look at a time: an answer that was overtaken must not be shown last. */
  async changed(parts) {
    for (const part of parts) this.stale.add(part);
    if (this.looking) return;
    this.looking = true;
    while (this.stale.size) {
      const now = this.stale;
      this.stale = new Set();
      if (now.has("approvals")) await this.count();
      await this.refresh(now);
    }
    this.looking = false;
  }

  /** Bring the view up to date. A gateway that cannot be reached is told of beside the navigation. */
  async refresh(parts) {
    try {
      await this.view?.refresh?.(parts);
      this.tick();
    } catch (error) {
      if (error.status === undefined) throw error;
      if (error.status !== 0) this.shell.note(error.message, "bad");
    }
  }

  /** Do something that may fail; a failure becomes a note. Whether it went well. */
  async attempt(work) {
    try {
      await work();
      return true;
    } catch (error) {
      if (error.status === undefined) throw error;
      this.shell.note(error.message, "bad");
      return false;
    }
  }

  async count() {
    const told = await this.api.get("/-/approvals", { limit: 1 }).catch(() => null);
    if (told) this.shell.count(told.counts.pending ?? 0);
  }

  tick() {
    tick(document, this.api.now());
    if (this.me && !this.door && this.api.attention.untold) this.api.send("GET", "/-/me").catch(() => null);
  }
}

function failed(error) {
  if (error.status === undefined) throw error;
  return {
    title: "Not shown",
    node: h("section", { class: "nothing" }, h("h1", { tabindex: "-1" }, "This cannot be shown"), h("p", {}, error.message)),
  };
}

new App().start();
