/** The control endpoints, which are all that the page asks. Keeps the token that every change needs, and the gateway's time. */

import { Attention } from "./attention.js";
import { read, write } from "./exact.js";

const LONGEST_MS = 30_000;
const SKEW_MS = 2_000; // a clock that is off by less is left alone: the header `Date` is in seconds

/** What the gateway answered in place of what was asked for (RFC 9457). */
export class Problem extends Error {
  constructor(status, told) {
    super(told.detail || `The gateway answered ${status}.`);
    this.status = status;
    this.code = told.code ?? "";
    this.told = told;
  }
}

export class Api {
  /** `ended` is called where the login is over; what it promises is that somebody has logged in again. */
  constructor(ended) {
    this.csrf = null;
    this.skew = 0;
    this.attention = new Attention();
    this.ended = ended;
  }

  /** The gateway's time, in milliseconds. */
  now() {
    return Date.now() + this.skew;
  }

  /** Ask for something; where the login is over, again after the next one. */
  async get(path, query = {}) {
    const wanted = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== ""));
    const url = wanted.size ? `${path}?${wanted}` : path;
    try {
      return await this.send("GET", url);
    } catch (error) {
      if (error.status !== 401) throw error;
      await this.ended();
      return this.send("GET", url);
    }
  }

  /** Change something. It is never sent twice: where the login is over, nothing has changed, and whoever asked is told. */
  async post(path, body = {}, method = "POST") {
    try {
      return await this.send(method, path, body);
    } catch (error) {
      if (error.status !== 401) throw error;
      await this.ended();
      throw new Problem(401, { detail: "Your login had ended, so nothing was changed. You are logged in again: please repeat it." });
    }
  }

  /** One request, without a second try. A change carries its token; what nobody is there for says so, and keeps no login going. */
  async send(method, path, body) {
    const headers = { Accept: "application/json" };
    if (this.attention.lately) this.attention.told = Date.now();
    else headers["X-Lockgate-Background"] = "1";
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (method !== "GET" && this.csrf) headers["X-Lockgate-Csrf"] = this.csrf;
    const answer = await this.fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : write(body, 0),
      credentials: "same-origin",
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(LONGEST_MS),
    });
    const told = parsed(await answer.text());
    if (!answer.ok) throw new Problem(answer.status, told);
    return told;
  }

  async fetch(path, options) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch (error) {
      const why = error.name === "TimeoutError" ? "did not answer in time" : "cannot be reached";
      throw new Problem(0, { code: "unreachable", detail: `The gateway ${why}. What you see may be old.` });
    }
    const skew = Date.parse(answer.headers.get("Date") ?? "") - Date.now();
    if (Math.abs(skew) > SKEW_MS) this.skew = skew;
    return answer;
  }
}

function parsed(text) {
  try {
    return read(text) ?? {};
  } catch {
    return {};
  }
}
