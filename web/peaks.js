// From the runs to the nodes on the screen: which run belongs to this workflow, what each node cost.

export function rootGraph(app) {
  return app.rootGraph ?? app.graph ?? null;
}

/** The id under which a workflow is saved; switching tabs and reloading keep it. */
export function workflowId(app) {
  return rootGraph(app)?.id ?? null;
}

const nodeOf = (graph, id) => graph?.getNodeById?.(Number(id)) ?? graph?.getNodeById?.(id) ?? null;

/** The nodes from the root graph down to the one with an execution id such as "3:2"; or null. */
export function pathOf(root, id) {
  const path = [];
  let graph = root;
  for (const part of String(id).split(":")) {
    const node = nodeOf(graph, part);
    if (!node) return null;
    path.push(node);
    graph = node.subgraph;
  }
  return path;
}

const classOf = (node) => node.comfyClass ?? node.type;

/** Whether every span's node is in the graph with the class that ran. */
export function matches(root, spans) {
  return spans.every((span) => {
    if (span.parent !== null && span.parent !== undefined) return true; // made while it ran
    const path = pathOf(root, span.node);
    return path !== null && classOf(path.at(-1)) === span.class_type;
  });
}

/** The peak of a span: torch's allocator and the host's own pages of weights. */
export function peakOf(span) {
  if (span.peak_allocated === null || span.peak_allocated === undefined) return null;
  return span.peak_allocated + (span.pages_peak ?? 0);
}

/**
 * Node -> {peak, seconds, total, run, id}: `run` and `id` name its last span. A node that runs twice, or
 * stands in a subgraph that is used several times, has its highest peak; a subgraph's node has the
 * highest of its nodes and their time.
 */
export function costs(root, spans) {
  const found = new Map();
  for (const span of spans) {
    if (span.parent !== null && span.parent !== undefined) continue;
    const path = pathOf(root, span.node);
    if (!path || classOf(path.at(-1)) !== span.class_type) continue;
    path.forEach((node, depth) => {
      const inner = depth < path.length - 1;
      const entry = found.get(node) ?? { peak: null, seconds: 0, total: inner };
      const peak = peakOf(span);
      if (peak !== null) entry.peak = Math.max(entry.peak ?? 0, peak);
      entry.seconds += span.seconds ?? 0;
      if (!inner) Object.assign(entry, { run: span.run, id: span.node });
      found.set(node, entry);
    });
  }
  return found;
}

/**
 * Which workflow each run belongs to. ComfyUI's history knows it for sure; while a run goes on, and
 * where the history has none, the nodes that ran must all be in the graph.
 */
export class Owners {
  constructor(api, changed) {
    this._api = api;
    this._changed = changed;
    this._known = new Map(); // run -> workflow id, null where the history has none
    this._asked = new Set();
  }

  belongs(run, workflow, root) {
    const owner = this._known.get(run.run);
    if (owner) return owner === workflow; // even if some of its nodes were taken out since
    return Boolean(run.nodes?.length) && matches(root, run.nodes);
  }

  /** Look up the workflow of a run that has ended. */
  async ask(run) {
    if (this._asked.has(run)) return;
    this._asked.add(run);
    if (this._asked.size > 200) this._asked.clear();
    try {
      const path = `/history/${encodeURIComponent(run)}`;
      const entry = (await (await this._api.fetchApi(path)).json())[run];
      this._known.set(run, entry?.prompt?.[3]?.extra_pnginfo?.workflow?.id ?? null);
      if (this._known.size > 100) this._known.delete(this._known.keys().next().value);
      this._changed();
    } catch {
      this._known.set(run, null);
    }
  }
}
