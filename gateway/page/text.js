/** Texts that a model or a caller wrote: shown as what they are, isolated, with what cannot be seen made visible, long ones folded. */

import { h } from "./dom.js";

// Controls, formats (right-to-left overrides, zero widths, tags), private and unassigned letters, lone surrogates, blanks that are not
// the space, fillers and selectors. Tabs and line ends are left as they are.
const UNSEEN = new RegExp(
  "(?![\\n\\t])[\\p{Cc}\\p{Cf}\\p{Cn}\\p{Co}\\p{Cs}\\p{Zl}\\p{Zp}\\u00a0\\u034f\\u115f\\u1160\\u1680\\u180b-\\u180f" +
    "\\u2000-\\u200a\\u202f\\u205f\\u3000\\u3164\\ufe00-\\ufe0e\\uffa0\\u{e0100}-\\u{e01ef}]",
  "gu",
);
const NAMES = new Map([
  [0x00, "NUL"],
  [0x07, "BEL"],
  [0x08, "BS"],
  [0x0d, "CR"],
  [0x1b, "ESC"],
  [0x7f, "DEL"],
  [0xa0, "NBSP"],
  [0xad, "SHY"],
  [0x200b, "ZWSP"],
  [0x200c, "ZWNJ"],
  [0x200d, "ZWJ"],
  [0x200e, "LRM"],
  [0x200f, "RLM"],
  [0x202a, "LRE"],
  [0x202b, "RLE"],
  [0x202c, "PDF"],
  [0x202d, "LRO"],
  [0x202e, "RLO"],
  [0x2028, "LS"],
  [0x2029, "PS"],
  [0x2060, "WJ"],
  [0x2066, "LRI"],
  [0x2067, "RLI"],
  [0x2068, "FSI"],
  [0x2069, "PDI"],
  [0xfeff, "BOM"],
]);
const MOST_MARKS = 200; // in one piece; where there are more they are plain text, which costs no element each
const PIECE = 8_192; // letters of a piece: what is out of sight is not laid out
const FOLD_LINES = 16;
const FOLD_LETTERS = 1_600;
const SLICE_MS = 8; // of work at a stretch while a long text is unfolded: the page stays usable

/** One line of text, as a `bdi`: what it holds cannot turn or break what stands around it. */
export function said(text, props = {}) {
  const line = String(text ?? "")
    .replaceAll("\n", "⏎")
    .replaceAll("\t", "⇥");
  return h("bdi", { ...props, class: `said ${props.class ?? ""}`.trim() }, marked(line));
}

/** A text of any length, as a block: its line ends kept, folded where it is long. */
export function passage(text) {
  const block = h("div", { class: "said passage" });
  const cut = foldAt(text);
  block.append(...pieces(text.slice(0, cut)));
  if (cut < text.length) block.append(unfolder(block, text, cut));
  return block;
}

/** How much of a text is shown at first: all of it, or some lines. */
export function foldAt(text) {
  if (text.length <= FOLD_LETTERS && lines(text) <= FOLD_LINES) return text.length;
  let at = 0;
  for (let line = 0; line < FOLD_LINES && at < FOLD_LETTERS; line += 1) {
    const end = text.indexOf("\n", at);
    if (end < 0) return whole(text, Math.min(FOLD_LETTERS, text.length));
    at = end + 1;
  }
  return whole(text, Math.min(at, FOLD_LETTERS));
}

/** JSON that means the same, in which nothing is unseen: for a field, which shows its text as it is. */
export function escaped(json) {
  const unit = (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return json.replace(UNSEEN, (letter) => [...Array(letter.length).keys()].map((at) => unit(letter[at])).join(""));
}

/** A size as people read it. */
export function size(bytes) {
  if (bytes < 1_000) return `${bytes} bytes`;
  return bytes < 999_500 ? `${Math.round(bytes / 1_000)} kB` : `${(bytes / 1_000_000).toFixed(1)} MB`;
}

function lines(text) {
  let count = 1;
  for (let at = text.indexOf("\n"); at >= 0 && count <= FOLD_LINES; at = text.indexOf("\n", at + 1)) count += 1;
  return count;
}

/** A place that does not part a surrogate pair. */
function whole(text, at) {
  const letter = text.charCodeAt(at - 1);
  return letter >= 0xd800 && letter < 0xdc00 && at < text.length ? at - 1 : at;
}

function unfolder(block, text, from) {
  const button = h("button", { type: "button", class: "quiet unfold" }, `Show all ${size(new Blob([text]).size)}`);
  button.addEventListener("click", () => unfold(block, button, text, from));
  return button;
}

/** Add the rest piece by piece, with room for everything else in between. */
function unfold(block, button, text, from) {
  button.disabled = true;
  let at = from;
  const work = () => {
    const end = performance.now() + SLICE_MS;
    while (at < text.length && performance.now() < end) {
      const next = whole(text, Math.min(pieceEnd(text, at), text.length));
      button.before(piece(text.slice(at, next)));
      at = next;
    }
    if (at < text.length && block.isConnected) {
      button.textContent = `${Math.round((100 * at) / text.length)} %`;
      setTimeout(work);
    } else {
      block.dataset.unfolded = "";
      button.remove();
    }
  };
  work();
}

function pieceEnd(text, at) {
  const end = text.lastIndexOf("\n", at + PIECE);
  return end > at + PIECE / 2 ? end + 1 : at + PIECE;
}

function pieces(text) {
  const made = [];
  for (let at = 0; at < text.length;) {
    const next = whole(text, Math.min(pieceEnd(text, at), text.length));
    made.push(piece(text.slice(at, next)));
    at = next;
  }
  return made;
}

function piece(text) {
  return h("span", { class: "piece" }, marked(text));
}

/** A text with marks in place of what could not be seen. */
function marked(text) {
  const found = text.match(UNSEEN);
  if (!found) return [text];
  if (found.length > MOST_MARKS) return [text.replace(UNSEEN, (letter) => `⟨${name(letter)}⟩`)];
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(UNSEEN)) {
    parts.push(text.slice(at, match.index), mark(match[0]));
    at = match.index + match[0].length;
  }
  return [...parts, text.slice(at)];
}

function mark(letter) {
  return h("span", { class: "unseen", title: `U+${hex(letter)}, which cannot be seen` }, name(letter));
}

function name(letter) {
  return NAMES.get(letter.codePointAt(0)) ?? `U+${hex(letter)}`;
}

function hex(letter) {
  return letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
}
