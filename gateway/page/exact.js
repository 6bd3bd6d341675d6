/** JSON without loss: a number that JavaScript would round is kept as it was written, when it is read and when it is written again. */

/** A number by its digits: a double cannot hold it. */
export class Exact {
  constructor(source) {
    this.source = source;
  }

  toString() {
    return this.source;
  }
}

/** Whether this browser tells how a number was written (2024 and later). Others round beyond 2^53. */
export const EXACT = (() => {
  let told = false;
  JSON.parse("1", (_name, value, context) => {
    told = context?.source === "1";
    return value;
  });
  return told;
})();

/** A value out of JSON. Raises `SyntaxError`. */
export function read(text) {
  return JSON.parse(text, (_name, value, context) => {
    if (typeof value !== "number" || context?.source === undefined) return value;
    return same(value, context.source) ? value : new Exact(context.source);
  });
}

/** A value as JSON, indented. */
export function write(value, indent = 2, at = 0) {
  if (value instanceof Exact) return value.source;
  if (value === null || typeof value !== "object") return JSON.stringify(value) ?? "null";
  const inner = " ".repeat(at + indent);
  const parts = Array.isArray(value)
    ? value.map((each) => `${inner}${write(each, indent, at + indent)}`)
    : Object.keys(value).map((name) => `${inner}${JSON.stringify(name)}: ${write(value[name], indent, at + indent)}`);
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  return parts.length ? `${open}\n${parts.join(",\n")}\n${" ".repeat(at)}${close}` : `${open}${close}`;
}

/** Whether two values are the same, number for number. */
export function equal(one, other) {
  return (one === undefined) === (other === undefined) && write(one, 0) === write(other, 0);
}

/** What is at a JSON pointer (RFC 6901), undefined where nothing is. */
export function pointed(value, pointer) {
  return pointer
    .split("/")
    .slice(1)
    .reduce((found, part) => {
      const name = part.replaceAll("~1", "/").replaceAll("~0", "~");
      return found !== null && typeof found === "object" && Object.hasOwn(found, name) ? found[name] : undefined;
    }, value);
}

/** A JSON pointer one step further. */
export function step(pointer, name) {
  return `${pointer}/${String(name).replaceAll("~", "~0").replaceAll("/", "~1")}`;
}

function same(value, source) {
  return String(value) === source || String(value) === trimmed(source);
}

/** A fraction without zeros at its end: `1.50` and `1.5` are one number. */
function trimmed(source) {
  return source.includes(".") && !/[eE]/.test(source) ? source.replace(/0+$/, "").replace(/\.$/, "") : source;
}
