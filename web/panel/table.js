// A view as a table: on the page, and drawn on a canvas for the picture.
import { el, name } from "../dom.js";
import { theme } from "./theme.js";

/**
 * @typedef {{title: string, number?: boolean, outside?: boolean}} Column `outside`: text not of ours.
 * @typedef {{key: string, cells: string[], title?: string, chosen?: boolean, mark?: boolean,
 *   choose?: () => void, actions?: {label: string, about: string, off?: boolean, run: () => void}[]}} Row
 * @typedef {{caption: string, columns: Column[], rows: Row[], empty: string, actions?: string}} Table
 */

export function tableElement(table) {
  if (!table.rows.length) return el("p", { class: "lowtide-empty" }, table.empty);
  const withActions = table.rows.some((row) => row.actions?.length);
  const head = table.columns.map((column) => el("th", { scope: "col", class: kind(column) }, column.title));
  if (withActions) head.push(el("th", { scope: "col" }, table.actions ?? ""));
  return el(
    "table",
    { class: "lowtide-table" },
    el("caption", { class: "lowtide-hidden" }, table.caption),
    el("thead", {}, el("tr", {}, ...head)),
    el("tbody", {}, ...table.rows.map((row) => rowElement(table, row, withActions))),
  );
}

const kind = (column) => (column.number ? "lowtide-number" : null);

function rowElement(table, row, withActions) {
  const cells = table.columns.map((column, index) => {
    const text = row.cells[index];
    const content = column.outside ? name(text) : text;
    if (index > 0) return el("td", { class: kind(column) }, content);
    const first = row.choose
      ? el("button", { type: "button", class: "lowtide-link", "data-key": `choose ${row.key}`, onclick: row.choose }, content)
      : content;
    return el("th", { scope: "row" }, first);
  });
  if (withActions) {
    const buttons = (row.actions ?? []).map((action) =>
      el(
        "button",
        {
          type: "button",
          class: "lowtide-button",
          "data-key": `${action.label} ${row.key}`,
          "aria-label": action.about,
          disabled: Boolean(action.off),
          onclick: action.run,
        },
        action.label,
      ),
    );
    cells.push(el("td", {}, ...buttons));
  }
  return el(
    "tr",
    {
      "data-row": row.key,
      title: row.title,
      class: [row.mark ? "lowtide-mark" : "", row.chosen ? "lowtide-chosen" : ""].join(" ").trim() || null,
    },
    ...cells,
  );
}

const LINE_PX = 22;
const PAD_PX = 12;
const LONGEST = 48;

/** The table as a picture: a canvas of its own, in the theme of the page. */
export function tableCanvas(table, scale = 2) {
  const colours = theme();
  const canvas = document.createElement("canvas");
  const ctx = canvas.getContext("2d");
  const short = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text);
  const lines = [table.columns.map((column) => column.title), ...table.rows.map((row) => row.cells)];
  ctx.font = colours.font;
  const widths = table.columns.map((_, index) =>
    Math.max(...lines.map((line) => ctx.measureText(short(line[index])).width)) + 2 * PAD_PX,
  );
  const width = Math.max(320, widths.reduce((a, b) => a + b, 0));
  canvas.width = width * scale;
  canvas.height = (LINE_PX * (lines.length + 1) + PAD_PX) * scale;
  ctx.scale(scale, scale);
  ctx.fillStyle = colours.background;
  ctx.fillRect(0, 0, width, canvas.height);
  ctx.font = colours.font;
  ctx.fillStyle = colours.text;
  ctx.textBaseline = "middle";
  ctx.fillText(table.rows.length ? table.caption : table.empty, PAD_PX, LINE_PX / 2 + 4);
  lines.forEach((line, row) => {
    let x = 0;
    const y = LINE_PX * (row + 1.5) + 4;
    line.forEach((text, index) => {
      const number = table.columns[index].number;
      ctx.textAlign = number ? "right" : "left";
      ctx.fillStyle = row === 0 ? colours.faint : colours.text;
      ctx.fillText(short(text), number ? x + widths[index] - PAD_PX : x + PAD_PX, y);
      x += widths[index];
    });
    ctx.fillStyle = colours.border;
    ctx.fillRect(0, y + LINE_PX / 2, width, 1);
  });
  return canvas;
}
