// What the server has said: one state, kept up to date by its messages, fetched anew on a new boot.

const KEPT = 20;
const RETRY_MS = [500, 1000, 2000, 4000, 8000];

const EMPTY = {
  boot: null,
  seq: -1,
  running: false,
  devices: [],
  host: { total: null, available: null, rss: null },
  models: [],
  runs: [],
  receipts: [],
  next: { level: null, budget_gb: null },
  history: null,
};

const TOPICS = ["figures", "models", "node", "runs", "receipts", "next", "history", "connection"];

const list = (value) => (Array.isArray(value) ? value : []);

export class Store {
  /** @param {() => Promise<object>} load fetches the whole state; rejects where it cannot. */
  constructor(load) {
    this.state = structuredClone(EMPTY);
    this.connected = false;
    this.live = null; // {run, nodes} of the run that this tab has queued, while it runs
    this._load = load;
    this._listeners = new Map();
    this._waiting = []; // messages that came while the state was being fetched
    this._fetching = null;
    this._again = false;
    this._hurry = null; // ends the wait before the next try
  }

  /** Calls `listener` whenever one of the topics has changed. */
  on(topics, listener) {
    for (const topic of [topics].flat()) {
      if (!TOPICS.includes(topic)) throw new Error(`no topic ${topic}`);
      if (!this._listeners.has(topic)) this._listeners.set(topic, new Set());
      this._listeners.get(topic).add(listener);
    }
    return () => this._listeners.forEach((set) => set.delete(listener));
  }

  _tell(...topics) {
    const called = new Set(topics.flatMap((topic) => [...(this._listeners.get(topic) ?? [])]));
    for (const listener of called) {
      try {
        listener();
      } catch (error) {
        console.error("lowtide:", error);
      }
    }
  }

  /** Fetch the state; asked while that is under way, fetch once more after it. */
  refresh() {
    if (this._hurry) {
      this._hurry();
      return this._fetching;
    }
    if (this._fetching) {
      this._again = true;
      return this._fetching;
    }
    this._fetching = this._fetch(0).finally(() => {
      this._fetching = null;
      if (this._again) {
        this._again = false;
        this.refresh();
      }
    });
    return this._fetching;
  }

  async _fetch(attempt) {
    let fetched;
    try {
      fetched = await this._load();
    } catch {
      this._waiting = [];
      if (attempt === 0) this.disconnect();
      const wait = RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)];
      await this._pause(wait);
      return this._fetch(attempt + 1);
    }
    if (fetched.boot !== this.state.boot || !fetched.running) this.live = null;
    this.state = { ...structuredClone(EMPTY), ...fetched };
    for (const name of ["devices", "models", "runs", "receipts"]) {
      this.state[name] = list(this.state[name]);
    }
    this.connected = true;
    const waiting = this._waiting;
    this._waiting = [];
    this._tell(...TOPICS);
    for (const [kind, message] of waiting) {
      if (message.boot === this.state.boot) this.accept(kind, message);
    }
  }

  async _pause(milliseconds) {
    let timer = 0;
    await new Promise((resolve) => {
      this._hurry = resolve;
      timer = setTimeout(resolve, milliseconds);
    });
    clearTimeout(timer);
    this._hurry = null;
  }

  /** The server does not answer: nothing shown is true any more. */
  disconnect() {
    if (!this.connected) return;
    this.connected = false;
    this.live = null;
    this._tell("connection", "figures");
  }

  /** Take one message of the server; one of another boot makes the state be fetched anew. */
  accept(kind, message) {
    if (!message || typeof message !== "object" || !Number.isInteger(message.seq)) return;
    if (this._fetching && !this.connected) return void this._waiting.push([kind, message]);
    if (message.boot !== this.state.boot) {
      this._waiting.push([kind, message]);
      this.connected = false;
      this.refresh();
      return;
    }
    if (message.seq <= this.state.seq) return; // the state fetched already has it
    if (this._fetching) this._waiting.push([kind, message]);
    this.state.seq = message.seq;
    this[`_${kind}`](message);
  }

  _sample(message) {
    const { running, devices, host } = message;
    Object.assign(this.state, { running, devices: list(devices), host });
    this._tell("figures");
  }

  _models(message) {
    this.state.models = list(message.models);
    this._tell("models");
  }

  _node(message) {
    if (this.live?.run !== message.prompt_id) this.live = { run: message.prompt_id, nodes: [] };
    this.live.nodes.push(message.span);
    this._tell("node");
  }

  _run(message) {
    const run = message.run;
    if (this.live?.run === run.run) this.live = null;
    const others = this.state.runs.filter((known) => known.run !== run.run);
    this.state.runs = [...others, run].slice(-KEPT);
    this._tell("runs", "node");
  }

  _receipt(message) {
    this.state.receipts = [...this.state.receipts, message.receipt].slice(-KEPT);
    this._tell("receipts");
  }

  _next(message) {
    this.setNext({ ...EMPTY.next, ...message.next });
  }

  setNext(next) {
    this.state.next = next;
    this._tell("next");
  }

  setHistory(history) {
    this.state.history = history;
    this._tell("history");
  }
}
