// Asks whether a node that is out of memory may run again, and sends the answer.
import { clean } from "./format.js";
import { question } from "./question.js";

const LONGEST = 600;

export class Rescue {
  constructor(actions) {
    this.actions = actions;
    this._known = new Map(); // question -> what ends it
  }

  /** The server repeats a question while it is open, for pages loaded anew; then says that it is over. */
  async hear(detail) {
    const id = detail?.question;
    if (typeof id !== "string") return;
    if (!detail.open) return void this._known.get(id)?.abort();
    if (this._known.has(id)) return;
    const over = new AbortController();
    this._known.set(id, over);
    const yes = await question(clean(detail.text, LONGEST), over.signal);
    if (yes === null) return;
    await this.actions.tell(async () => void (await this.actions.post("rescue", { question: id, yes })));
  }

  /** The server is away: what it still wants to know it asks again. */
  forget() {
    for (const over of this._known.values()) over.abort();
    this._known.clear();
  }
}
