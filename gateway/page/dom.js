/** Elements. A string is always text here, never markup; nothing else in the page makes elements. */

const PROPERTIES = new Set(["value", "checked", "disabled", "selected", "hidden", "open", "indeterminate", "readOnly"]);

/** An element with properties and children. `on` holds listeners, `data` data attributes, `vars` CSS variables. */
export function h(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) set(node, name, value);
  node.append(...known(children));
  return node;
}

/** Put other children in place of those that are there. */
export function fill(node, ...children) {
  node.replaceChildren(...known(children));
  return node;
}

/** The children that are something, flat: lists are opened, null and false left out. */
function known(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}

function set(node, name, value) {
  if (value === null || value === undefined) return;
  if (name === "on") {
    for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
  } else if (name === "data") {
    Object.assign(node.dataset, value);
  } else if (name === "vars") {
    for (const [variable, text] of Object.entries(value)) node.style.setProperty(`--${variable}`, text);
  } else if (PROPERTIES.has(name)) {
    node[name] = value;
  } else if (value !== false) {
    node.setAttribute(name, value === true ? "" : value);
  }
}

/** A drawing out of `icon` shapes: each is a path of a 16 by 16 field. */
export function icon(...paths) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", "0 0 16 16");
  drawing.setAttribute("aria-hidden", "true");
  drawing.classList.add("icon");
  for (const path of paths) {
    const line = document.createElementNS(space, "path");
    line.setAttribute("d", path);
    drawing.append(line);
  }
  return drawing;
}

/** A labelled field of a form. `about` says what belongs into it. */
export function field(label, control, about) {
  const id = control.id || `f${crypto.randomUUID()}`;
  control.id = id;
  const hint = about ? h("span", { class: "hint", id: `${id}-hint` }, about) : null;
  if (hint) control.setAttribute("aria-describedby", hint.id);
  return h("div", { class: "field" }, h("label", { for: id }, label), control, hint);
}
