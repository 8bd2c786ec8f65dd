// The fit check of the graph on the screen: asked by a person, shown on the nodes until they ask again.
import { clean } from "./format.js";
import { pathOf, workflowId } from "./peaks.js";
import { t } from "./texts.js";

export class Fit {
  constructor(app, actions) {
    this.app = app;
    this.actions = actions;
    this.result = null; // {workflow, at, fits, nodes}
    this.busy = false;
    this._listeners = new Set();
  }

  on(listener) {
    this._listeners.add(listener);
  }

  _tell() {
    this._listeners.forEach((listener) => listener());
  }

  /** Ask the server about the graph as it would be queued now. */
  async check() {
    if (this.busy) return false;
    this.busy = true;
    this._tell();
    try {
      return await this.actions.tell(async () => {
        const workflow = workflowId(this.app);
        const { output } = await this.app.graphToPrompt();
        const answer = await this.actions.post("fit", { prompt: output });
        const nodes = answer.nodes ?? {};
        this.result = { workflow, at: Date.now() / 1000, fits: answer.fits, nodes };
        const bad = Object.entries(nodes).filter(([, node]) => node.fits === false);
        const unknown = Object.values(nodes).filter((node) => node.fits === null).length;
        if (!bad.length) return unknown ? t("fit.unknown", { count: unknown }) : t("fit.all");
        const [id, worst] = bad.reduce((a, b) => ((a[1].need ?? 0) >= (b[1].need ?? 0) ? a : b));
        this.actions.toast(
          "warn",
          `${t("fit.some", { count: bad.length })}\n#${clean(id, 20)}: ${clean(worst.remedy, 200)}`,
        );
        return null;
      });
    } finally {
      this.busy = false;
      this._tell();
    }
  }

  clear() {
    this.result = null;
    this._tell();
  }

  /** Predicted bytes of a node by the last check of this workflow, or null. */
  predicted(id, workflow) {
    return this.result?.workflow === workflow ? (this.result.nodes[id]?.need ?? null) : null;
  }

  /** Node -> answer, of those that won't fit; of a subgraph's nodes the subgraph's node as well. */
  misfits(root, workflow) {
    const found = new Map();
    if (this.result?.workflow !== workflow) return found;
    for (const [id, answer] of Object.entries(this.result.nodes)) {
      if (answer.fits !== false) continue;
      for (const node of pathOf(root, id) ?? []) {
        if ((found.get(node)?.need ?? -1) < (answer.need ?? 0)) found.set(node, answer);
      }
    }
    return found;
  }
}
