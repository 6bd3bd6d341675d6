/** Where somebody is: `#/view/id?query`. */

/** A place, as a link. */
export function href(view, id, query = {}) {
  const wanted = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== ""));
  return `#/${view}${id ? `/${encodeURIComponent(id)}` : ""}${wanted.size ? `?${wanted}` : ""}`;
}

/** The place that an address means. */
export function placed(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [view, ...id] = path.split("/");
  return { view, id: decoded(id.join("/")), query: Object.fromEntries(new URLSearchParams(query)) };
}

/** Go there. */
export function go(view, id, query) {
  location.hash = href(view, id, query);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
