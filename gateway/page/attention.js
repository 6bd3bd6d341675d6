/** Whether somebody is at the page: a login goes on for them, and not for a page that stands open and asks by itself. */

const LATELY_MS = 60_000;
const SIGNS = ["pointerdown", "keydown", "input", "wheel", "touchmove"];

export class Attention {
  /** Whoever opens the page is there. */
  constructor() {
    this.seen = Date.now();
    this.told = this.seen; // when the gateway was last asked for something while somebody was there
    for (const sign of SIGNS) addEventListener(sign, () => (this.seen = Date.now()), { capture: true, passive: true });
  }

  /** Whether somebody has done something a moment ago. */
  get lately() {
    return Date.now() - this.seen < LATELY_MS;
  }

  /** Whether somebody reads or writes, and the gateway was asked for nothing meanwhile: it would take them for gone. */
  get untold() {
    return this.seen - this.told >= LATELY_MS;
  }
}
