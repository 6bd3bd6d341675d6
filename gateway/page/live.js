/** What changes at the gateway, as it says so itself: one `EventSource`, which comes back by itself. */

const STATES = { connecting: "Connecting", live: "Live", lost: "Reconnecting" };

export class Live extends EventTarget {
  /** `ended` is called where the gateway does not let us listen any more. */
  constructor(ended) {
    super();
    this.ended = ended;
    this.source = null;
    this.seen = {};
    this.set("connecting");
  }

  /** Begin to listen, or begin anew. */
  open() {
    this.close();
    const source = new EventSource("/-/events");
    source.addEventListener("open", () => this.set("live"));
    source.addEventListener("changed", (event) => this.changed(JSON.parse(event.data)));
    source.addEventListener("error", () => {
      this.set("lost");
      if (source.readyState === EventSource.CLOSED && this.source === source) this.ended();
    });
    this.source = source;
  }

  close() {
    this.source?.close();
    this.source = null;
  }

  /** Tell what is new since the last time: every part whose number has changed. */
  changed(now) {
    const parts = Object.keys(now).filter((part) => now[part] !== this.seen[part]);
    this.seen = now;
    if (parts.length) this.dispatchEvent(new CustomEvent("changed", { detail: new Set(parts) }));
  }

  set(state) {
    this.state = state;
    this.word = STATES[state];
    this.dispatchEvent(new Event("state"));
  }
}
