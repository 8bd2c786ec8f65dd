// The fit check of the graph on the screen: asked by a person, shown on the nodes until they ask again.
import { clean } from "./format.js";
import { pathOf, rootGraph, workflowId } from "./peaks.js";
import { t } from "./texts.js";

const AGAIN_MS = 2000;
const LONGEST_MS = 60000;

/** What a graph says that memory can depend on, to see whether it was edited; places are left out. */
function contentOf(app) {
  const { nodes = [], links, definitions } = rootGraph(app)?.serialize() ?? {};
  const said = nodes.map(({ id, type, mode, inputs, widgets_values }) => [id, type, mode, inputs, widgets_values]);
  return JSON.stringify([workflowId(app), said, links, definitions]);
}

export class Fit {
  constructor(app, actions) {
    this.app = app;
    this.actions = actions;
    this.result = null; // {workflow, at, fits, nodes, pending}
    this.busy = false;
    this._round = 0; // of the last check: an earlier one asks no more
    this._listeners = new Set();
  }

  on(listener) {
    this._listeners.add(listener);
  }

  _tell() {
    this._listeners.forEach((listener) => listener());
  }

  /** Ask the server about the graph as it would be queued now, and again while it still predicts. */
  async check() {
    if (this.busy) return false;
    this.busy = true;
    const round = ++this._round;
    this._tell();
    try {
      return await this.actions.tell(async () => {
        const content = contentOf(this.app);
        const { output } = await this.app.graphToPrompt();
        this.result = await this._asked(output, workflowId(this.app));
        if (!this.result.pending) return this._said(this.result);
        void this._follow(round, output, content);
        return t("fit.predicting", { count: this.result.pending });
      });
    } finally {
      this.busy = false;
      this._tell();
    }
  }

  async _asked(output, workflow) {
    const { fits, nodes = {}, pending = 0 } = await this.actions.post("fit", { prompt: output });
    return { workflow, at: Date.now() / 1000, fits, nodes, pending };
  }

  /** What a toast says of a result; of what won't fit it is shown here, as a warning. */
  _said({ nodes }) {
    const bad = Object.entries(nodes).filter(([, node]) => node.fits === false);
    const unknown = Object.values(nodes).filter((node) => node.fits === null).length;
    if (!bad.length) return unknown ? t("fit.unknown", { count: unknown }) : t("fit.all");
    const [id, worst] = bad.reduce((a, b) => ((a[1].need ?? 0) >= (b[1].need ?? 0) ? a : b));
    this.actions.toast(
      "warn",
      `${t("fit.some", { count: bad.length })}\n#${clean(id, 20)}: ${clean(worst.remedy, 200)}`,
    );
    return null;
  }

  /** Ask again until nothing is pending, the graph is another one, or it has taken too long. */
  async _follow(round, output, content) {
    const until = Date.now() + LONGEST_MS;
    const { workflow } = this.result;
    while (this._round === round && this.result.pending) {
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
      let found = null;
      if (this._round === round && Date.now() < until && contentOf(this.app) === content) {
        await this.actions.tell(async () => {
          found = await this._asked(output, workflow);
          return this._round === round && !found.pending ? this._said(found) : null;
        });
      }
      if (this._round !== round) return;
      this.result = found ?? { ...this.result, pending: 0 };
      this._tell();
    }
  }

  clear() {
    this._round += 1;
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
