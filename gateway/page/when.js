/** Times, durations and money as people read them, and the one timer that keeps those on the page true. */

import { h } from "./dom.js";

const UNITS = [
  [86_400, "d"],
  [3_600, "h"],
  [60, "min"],
  [1, "s"],
];
const SHORT_S = 600;
const LOW = 0.25;
const LAST = 0.1;

/** Seconds as their largest unit, and the next one; seconds stand beside minutes only where time is short. */
export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const at = UNITS.findIndex(([unit]) => whole >= unit);
  if (at < 0) return "0 s";
  const [unit, name] = UNITS[at];
  const next = UNITS[at + 1];
  const rest = next && !(unit === 60 && whole >= SHORT_S) ? Math.floor((whole % unit) / next[0]) : 0;
  return `${Math.floor(whole / unit)} ${name}${rest ? ` ${rest} ${next[1]}` : ""}`;
}

/** The same in one unit, for what is over: nobody needs it to the second. */
export function roughly(seconds) {
  return span(seconds).split(" ").slice(0, 2).join(" ");
}

/** How long ago something was; kept true. */
export function ago(time) {
  if (!time) return "never";
  return h("time", { datetime: time, title: local(time), data: { since: String(Date.parse(time)) } }, "…");
}

/** How much time there is left; kept true. */
export function left(time, over = "over") {
  return h("time", { datetime: time, title: local(time), data: { until: String(Date.parse(time)), over } }, "…");
}

/** A chamber whose level falls from one time to another one. For eyes only: the words stand beside it. */
export function gauge(begin, end) {
  return h(
    "span",
    { class: "gauge", "aria-hidden": "true", data: { begin: String(Date.parse(begin)), end: String(Date.parse(end)) } },
    h("i", {}),
  );
}

/** A time in the reader's own zone. */
export function local(time) {
  return new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** A time of day, with its day where that is another. */
export function clock(time) {
  const date = new Date(time);
  const day =
    date.toDateString() === new Date().toDateString() ? "" : `${date.toLocaleDateString(undefined, { month: "short", day: "numeric" })} `;
  return h(
    "time",
    { datetime: new Date(date).toISOString(), title: local(date) },
    day + date.toLocaleTimeString(undefined, { timeStyle: "medium" }),
  );
}

/** Nanoseconds since the epoch as a time that a browser can read. */
export function ofNs(ns) {
  return ns === null || ns === undefined ? null : new Date(Number(ns) / 1e6).toISOString();
}

/** USD, given as decimal text. Cents where there are any, more digits where it is less than that. */
export function usd(text) {
  if (text === null || text === undefined) return "–";
  const amount = Number(text);
  const digits = amount === 0 || Math.abs(amount) >= 0.1 ? 2 : 6;
  return `$${amount.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: digits })}`;
}

/** A whole number with its thousands apart. */
export function count(number) {
  return Number(number ?? 0).toLocaleString("en-US");
}

/** Bring every time and every gauge within a node up to date. `now` is in milliseconds, by the gateway's clock. */
export function tick(root, now) {
  for (const node of root.querySelectorAll("time[data-since]")) write(node, `${roughly((now - Number(node.dataset.since)) / 1_000)} ago`);
  for (const node of root.querySelectorAll("time[data-until]")) {
    const seconds = (Number(node.dataset.until) - now) / 1_000;
    write(node, seconds > 0 ? span(seconds) : node.dataset.over);
  }
  for (const node of root.querySelectorAll(".gauge")) {
    const { begin, end } = node.dataset;
    const level = Math.min(1, Math.max(0, (Number(end) - now) / Math.max(1, Number(end) - Number(begin))));
    node.style.setProperty("--level", level.toFixed(4));
    node.dataset.low = level < LAST ? "last" : level < LOW ? "low" : "";
  }
}

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
