// What a person can ask for: each a request to our routes, answered by a toast.
import { bytes, clean, seconds } from "./format.js";
import { question } from "./question.js";
import { t } from "./texts.js";

const LIFE_MS = 6000;
const OWNERS = 3; // owners named in a toast; the panel has all

/** The bytes a receipt gave back, in one line. */
export function receiptText(receipt) {
  const parts = [
    t("receipts.summary", {
      device: bytes(receipt.freed),
      host: bytes(receipt.freed_host),
      time: seconds(receipt.seconds),
    }),
  ];
  const owners = Object.entries(receipt.by_owner ?? {}).sort((a, b) => b[1] - a[1]);
  for (const [owner, count] of owners.slice(0, OWNERS)) {
    parts.push(`${clean(owner, 40)}: ${bytes(count)}`);
  }
  for (const error of (receipt.errors ?? []).slice(0, 1)) parts.push(clean(error, 160));
  return parts.join("\n");
}

export class Actions {
  constructor(app, api, store) {
    this.app = app;
    this.api = api;
    this.store = store;
    this._owed = 0; // receipts that follow as messages, for what this tab has asked for
  }

  toast(severity, detail) {
    this.app.extensionManager?.toast?.add({ severity, summary: "Lowtide", detail, life: LIFE_MS });
  }

  /** POST JSON; throws an Error with the server's own words where it refuses. */
  async post(path, body) {
    const request = this.api.fetchApi(`/lowtide/${path}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const answer = await request.catch(() => {
      throw new Error(t("chip.offlineLong"));
    });
    const told = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(told.error ?? t("actions.refused", { status: answer.status }));
    return told;
  }

  /** Do `work`; what it returns is shown as a toast, an error likewise. Returns whether it went well. */
  async tell(work) {
    try {
      const said = await work();
      if (said) this.toast("success", said);
      return true;
    } catch (error) {
      this.toast("error", clean(error.message, 300));
      return false;
    }
  }

  _receipt(told) {
    this._owed = told.queued ? this._owed + 1 : 0;
    return told.queued ? t("actions.queued") : receiptText(told.receipt);
  }

  /** Whether a receipt that came as a message is one this tab was promised. */
  owed() {
    this._owed -= 1;
    if (this._owed >= 0) return true;
    this._owed = 0;
    return false;
  }

  free(target = "vram") {
    return this.tell(async () => this._receipt(await this.post("free", { target, keep: [] })));
  }

  unload(id) {
    return this.tell(async () => this._receipt(await this.post("unload", { id })));
  }

  /** Level and budget of the next runs; null leaves them to the graph. */
  next(level, budget) {
    return this.tell(async () => {
      const { next } = await this.post("next", { level, budget_gb: budget });
      this.store.setNext(next);
      if (next.level === null && next.budget_gb === null) return t("next.cleared");
      const shown = next.budget_gb === null ? t("next.noBudget") : `${next.budget_gb} GB`;
      return t("next.set", { level: next.level ?? t("next.graph"), budget: shown });
    });
  }

  /** The next level in their order, from the graph's own to ultra and round again. */
  cycle() {
    const levels = [null, "none", "balanced", "aggressive", "ultra"];
    const { level, budget_gb } = this.store.state.next;
    return this.next(levels[(levels.indexOf(level) + 1) % levels.length], budget_gb);
  }

  async resetHistory() {
    if (!(await question(t("history.confirm")))) return false;
    return this.tell(async () => {
      this.store.setHistory((await this.post("history/reset", {})).history);
      return t("history.done");
    });
  }
}
