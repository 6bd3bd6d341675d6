/** Light or dark: as the system has it, or as somebody has chosen. */

const KEY = "lockgate-theme";
const NEXT = { auto: "light", light: "dark", dark: "auto" };

export class Theme extends EventTarget {
  constructor(root) {
    super();
    this.root = root;
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.dark.addEventListener("change", () => this.dispatchEvent(new Event("changed")));
    this.choice = Object.hasOwn(NEXT, localStorage.getItem(KEY) ?? "") ? localStorage.getItem(KEY) : "auto";
    this.apply();
  }

  /** The next choice: as the system, light, dark. */
  turn() {
    this.choice = NEXT[this.choice];
    localStorage.setItem(KEY, this.choice);
    this.apply();
  }

  apply() {
    if (this.choice === "auto") delete this.root.dataset.theme;
    else this.root.dataset.theme = this.choice;
    this.dispatchEvent(new Event("changed"));
  }
}
