// View: the last fit check of the graph on the screen, those that won't fit first.
import { bytes, clean, UNKNOWN } from "../format.js";
import { pathOf, rootGraph } from "../peaks.js";
import { t } from "../texts.js";

export const fit = {
  id: "fit",
  topics: [],

  data: ({ fit: check }) => check.result,

  summary({ fit: check }) {
    return check.result?.pending ? t("fit.predicting", { count: check.result.pending }) : "";
  },

  table({ app, fit: check }) {
    const columns = ["node", "need", "free", "verdict", "why", "remedy"];
    const entries = Object.entries(check.result?.nodes ?? {});
    const rank = ({ fits }) => (fits === false ? 0 : 1);
    entries.sort(([, a], [, b]) => rank(a) - rank(b) || (b.need ?? 0) - (a.need ?? 0));
    return {
      caption: t("fit.caption"),
      empty: check.busy ? t("fit.busy") : t("fit.empty"),
      columns: columns.map((key) => ({
        title: t(`fit.${key}`),
        number: key === "need" || key === "free",
        outside: key === "node" || key === "why" || key === "remedy",
      })),
      rows: entries.map(([id, node]) => ({
        key: id,
        mark: node.fits === false,
        cells: [
          `#${clean(id, 20)} ${clean(pathOf(rootGraph(app), id)?.at(-1)?.title ?? "", 40)}`.trim(),
          bytes(node.need),
          bytes(node.free),
          node.fits === null ? UNKNOWN : node.fits ? t("fit.yes") : t("fit.no"),
          clean(node.why ?? "", 200),
          clean(node.remedy ?? "", 200),
        ],
      })),
    };
  },
};
