// View: memory over time of one of the last runs, with its nodes; what each used, predicted and measured.
import { bytes, clean, clock, deviation, seconds } from "../format.js";
import { pathOf, peakOf, rootGraph, workflowId } from "../peaks.js";
import { t } from "../texts.js";

const title = (app, id) => clean(pathOf(rootGraph(app), id)?.at(-1)?.title ?? "", 40);

/** The run to show: the one chosen while it is known, else the last. */
export function chosenRun({ store, chosen }) {
  const runs = store.state.runs;
  return runs.find((run) => run.run === chosen.run) ?? runs.at(-1) ?? null;
}

/** Predicted bytes of a node: the run's own prediction where it has one, else the fit check's. */
export function predicted(context, run, span) {
  const own = span.predicted ?? run.predicted_nodes?.[span.node] ?? null;
  if (own !== null) return own;
  const check = context.fit.result;
  if (!check || check.at > run.started_at) return null; // a check after the run predicted nothing of it
  return context.fit.predicted(span.node, workflowId(context.app));
}

/** What stands above the chart: the run's figures in one line. */
export function summary(context) {
  const run = chosenRun(context);
  if (!run) return null;
  const parts = [
    clean(t(`status.${run.status}`), 30),
    seconds(run.seconds),
    `${t("figures.peak")} ${bytes(run.peak_allocated)}`,
    `${t("figures.reserved")} ${bytes(run.peak_reserved)}`,
    `RAM ${bytes(run.host_peak)}`,
    `${t("timeline.moved")} ${bytes(run.to_device)}`,
  ];
  if (typeof run.predicted === "number") {
    const off = deviation(run.predicted, run.peak_allocated);
    parts.push(`${t("timeline.predicted")} ${bytes(run.predicted)} (${off})`);
  }
  for (const attempt of run.attempts ?? []) {
    parts.push(`#${clean(attempt.node, 20)}: ${clean(attempt.rung, 60)}, ${clean(attempt.outcome, 60)}`);
  }
  return parts.join(" · ");
}

export const timeline = {
  id: "timeline",
  topics: ["runs", "connection"],
  chart: true,

  data: (context) => chosenRun(context),
  summary,

  /** The runs to choose from, the latest first. */
  choices({ store }) {
    return [...store.state.runs].reverse().map((run) => ({
      value: run.run,
      label: `${clock(run.started_at)} · ${clean(t(`status.${run.status}`), 20)} · ${seconds(run.seconds)} · ${bytes(run.peak_allocated)}`,
    }));
  },

  table(context) {
    const run = chosenRun(context);
    const columns = ["node", "class", "started", "took", "peak", "predicted", "error", "reserved", "before", "after", "moved", "status"];
    const words = new Set(["node", "class", "status"]);
    return {
      caption: t("timeline.caption"),
      empty: t("timeline.empty"),
      columns: columns.map((key) => ({
        title: t(`timeline.${key}`),
        number: !words.has(key),
        outside: words.has(key),
      })),
      rows: (run?.nodes ?? []).map((span, index) => {
        const said = predicted(context, run, span);
        return {
          key: `${index} ${span.node}`,
          chosen: context.chosen.node === span.node,
          mark: run.peak_allocated !== null && span.peak_allocated === run.peak_allocated,
          choose: () => context.choose(span.node),
          cells: [
            `#${clean(span.node, 20)} ${title(context.app, span.node)}`.trim(),
            clean(span.class_type, 40),
            seconds(span.started),
            seconds(span.seconds),
            bytes(peakOf(span)),
            bytes(said),
            deviation(said, peakOf(span)),
            bytes(span.peak_reserved),
            bytes(span.before),
            bytes(span.after),
            bytes(span.to_device),
            clean(t(`status.${span.status}`), 30),
          ],
        };
      }),
    };
  },
};
