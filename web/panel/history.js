// View: what the learning store knows of earlier runs on this machine, whatever its columns are.
import { bytes, clean, deviation, seconds } from "../format.js";
import { t } from "../texts.js";

const SHOWN = 200;
const BYTES = /(bytes|peak|predicted|measured|reserved|allocated|free)$/;
const SECONDS = /seconds$/;
const MOMENT = /^(at|latest|oldest)$/;
const LEAST_UNIX = 1e9;

function cell(key, value) {
  if (typeof value === "number") {
    if (BYTES.test(key) && Number.isInteger(value) && Math.abs(value) >= 1024) return bytes(value);
    if (MOMENT.test(key) && value > LEAST_UNIX) return new Date(1000 * value).toLocaleString();
    if (SECONDS.test(key)) return seconds(value);
  }
  return clean(typeof value === "object" && value !== null ? JSON.stringify(value) : value, 80);
}

export const history = {
  id: "history",
  topics: ["history", "connection"],

  data: ({ store }) => store.state.history,

  /** Totals in one line, or null where there is no store. */
  summary({ store }) {
    const known = store.state.history;
    return known ? t("history.summary", { runs: known.runs, bytes: bytes(known.bytes) }) : null;
  },

  table({ store }) {
    const known = store.state.history;
    const rows = (known?.rows ?? []).slice(-SHOWN).reverse();
    const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
    const compared = names.includes("predicted") && names.includes("measured");
    return {
      caption: t("history.caption"),
      empty: known ? t("history.empty") : t("history.none"),
      columns: [
        ...names.map((key) => ({
          title: clean(key.replaceAll("_", " "), 30),
          number: rows.some((row) => typeof row[key] === "number"),
          outside: true,
        })),
        ...(compared ? [{ title: t("history.error"), number: true }] : []),
      ],
      rows: rows.map((row, index) => ({
        key: String(index),
        cells: [
          ...names.map((key) => cell(key, row[key])),
          ...(compared ? [deviation(row.predicted, row.measured)] : []),
        ],
      })),
    };
  },
};
