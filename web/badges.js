// On each node the peak of its last run, heat by choice, and what a fit check found; for the classic
// canvas by badges and strokes, for Nodes 2.0 by badges and a style sheet. Nothing is saved with a graph.
import { ownSheet } from "./dom.js";
import { bytes, seconds } from "./format.js";
import { costs, Owners, rootGraph, workflowId } from "./peaks.js";
import * as keys from "./settings.js";
import { t } from "./texts.js";

const TICK = "lowtideBadges"; // a key of the frontend's reactive store, which the getters read
const PLAIN = "#334155";
const MISFIT = "#b91c1c";
const TEXT = "#ffffff";
const STROKE = "lowtide";

/** A colour from cool to hot for a share from 0 to 1, dark enough for white text. */
export function heatColour(share) {
  const hue = 220 - 220 * Math.max(0, Math.min(1, share));
  return `hsl(${hue.toFixed(0)}, 75%, 36%)`;
}

export class Badges {
  constructor(app, api, store, fit) {
    this.app = app;
    this.store = store;
    this.fit = fit;
    this.painted = 0;
    this._costs = new Map();
    this._misfits = new Map();
    this._strokes = new Map();
    this._dressed = new WeakSet();
    this._due = false;
    this._sheet = null;
    this._owners = new Owners(api, () => this.refresh());
  }

  start() {
    this._sheet = ownSheet();
    this.store.on(["node", "runs"], () => this.refresh());
    this.fit.on(() => this.refresh());
    const canvas = this.app.canvas?.canvas;
    canvas?.addEventListener("litegraph:set-graph", () => this.refresh());
    document.addEventListener("visibilitychange", () => this.refresh());
    this.refresh();
  }

  /** What a node on the screen cost in the last run of this workflow, or null. */
  costOf(node) {
    return this._costs.get(node) ?? null;
  }

  /** Give a node its badges; to be called when it is made, while Nodes 2.0 still looks. */
  dress(node) {
    if (this._dressed.has(node) || !Array.isArray(node.badges)) return;
    this._dressed.add(node);
    node.badges.push(this._getter(() => [this._costText(node), this._costColour(node)]));
    node.badges.push(this._getter(() => [this._misfitText(node), MISFIT]));
    if (node.strokeStyles) node.strokeStyles[STROKE] = () => this._strokes.get(node);
  }

  /** Find everything out again, soon and once. */
  refresh() {
    if (this._due || document.hidden) return;
    this._due = true;
    setTimeout(() => {
      this._due = false;
      this._update();
    });
  }

  /** The spans to show: of the run that goes on if it is this workflow's, else of its last one. */
  spans() {
    const root = rootGraph(this.app);
    const workflow = workflowId(this.app);
    const runs = this.store.live ? [...this.store.state.runs, this.store.live] : this.store.state.runs;
    for (const run of [...runs].reverse()) {
      if (!run.nodes?.length) continue;
      if (run !== this.store.live && run.status !== "running") this._owners.ask(run.run);
      if (this._owners.belongs(run, workflow, root)) return this._completed(run, runs, workflow, root);
    }
    return [];
  }

  /** The spans of a run, and for nodes it took from the cache those of the run before it. */
  _completed(run, runs, workflow, root) {
    const of = (it) => it.nodes.map((span) => ({ ...span, run: it.run }));
    const spans = of(run);
    const seen = new Set(spans.map((span) => span.node));
    for (const earlier of runs.slice(0, runs.indexOf(run)).reverse()) {
      if (!earlier.nodes?.length || !this._owners.belongs(earlier, workflow, root)) continue;
      spans.push(...of(earlier).filter((span) => !seen.has(span.node)));
      earlier.nodes.forEach((span) => seen.add(span.node));
    }
    return spans;
  }

  _update() {
    const root = rootGraph(this.app);
    if (!root || !this._sheet || document.hidden) return;
    const shown = keys.setting(this.app, keys.BADGES) !== false;
    const heat = keys.setting(this.app, keys.HEAT) !== "off";
    this._costs = shown || heat ? costs(root, this.spans()) : new Map();
    this._most = { peak: 1, time: 1e-9 };
    for (const cost of this._costs.values()) {
      if (cost.total) continue;
      this._most.peak = Math.max(this._most.peak, cost.peak ?? 0);
      this._most.time = Math.max(this._most.time, cost.seconds);
    }
    this._misfits = this.fit.misfits(root, workflowId(this.app));
    for (const node of [...this._costs.keys(), ...this._misfits.keys()]) this.dress(node);
    this._outline();
    this.painted += 1;
    if (this.app.extensionManager) this.app.extensionManager[TICK] = this.painted;
    this.app.canvas?.setDirty?.(true, true);
  }

  /** What `node.badges` takes. The canvas asks at every frame: a badge is made once per change. */
  _getter(look) {
    let made = null;
    let of = -1;
    return () => {
      void this.app.extensionManager?.[TICK];
      if (of === this.painted) return made;
      const Badge = window.LGraphBadge ?? window.LiteGraph?.LGraphBadge;
      const [text, bgColor] = look();
      of = this.painted;
      return (made = new Badge({ text, fgColor: TEXT, bgColor }));
    };
  }

  _costText(node) {
    const cost = this._costs.get(node);
    if (!cost || keys.setting(this.app, keys.BADGES) === false) return "";
    const peak = bytes(cost.peak);
    return cost.total ? `Σ ${peak} · ${seconds(cost.seconds)}` : peak;
  }

  _heat(node) {
    const cost = this._costs.get(node);
    const by = keys.setting(this.app, keys.HEAT);
    if (!cost || by === "off" || !this._most) return null;
    return by === "time" ? cost.seconds / this._most.time : (cost.peak ?? 0) / this._most.peak;
  }

  _costColour(node) {
    const heat = this._heat(node);
    return heat === null ? PLAIN : heatColour(heat);
  }

  _misfitText(node) {
    const found = this._misfits.get(node);
    return found ? t("fit.badge", { need: bytes(found.need), free: bytes(found.free) }) : "";
  }

  _strokeColour(node) {
    if (this._misfits.has(node)) return MISFIT;
    const heat = this._heat(node);
    return heat === null ? null : heatColour(heat);
  }

  /** Outlines: strokes of the canvas, and rules for the elements that only Nodes 2.0 has. */
  _outline() {
    const graph = this.app.canvas?.graph ?? rootGraph(this.app);
    const rules = [];
    this._strokes = new Map();
    for (const node of new Set([...this._costs.keys(), ...this._misfits.keys()])) {
      const color = this._strokeColour(node);
      if (color) this._strokes.set(node, { color, lineWidth: 4, padding: 6 });
      if (color && node.graph === graph) {
        const id = CSS.escape(String(node.id));
        rules.push(`.lg-node[data-node-id="${id}"]{outline:3px solid ${color};outline-offset:3px}`);
      }
    }
    this._sheet.replaceSync(rules.join("\n"));
  }
}
