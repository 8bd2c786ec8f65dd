// The chart of a run on the page: a canvas, and a line of text for the node that is pointed at.
import { el } from "../dom.js";
import { clean } from "../format.js";
import { t } from "../texts.js";
import { drawRun, peakSpan, spanText } from "./chart.js";

const LEAST_WIDTH = 360;
const LEAST_HEIGHT = 125;
const MOST_HEIGHT = 420;
const LINE_PX = 28; // of the line of text below

export class Chart {
  constructor(choose) {
    this._boxes = [];
    this._canvas = el("canvas", { role: "img", class: "lowtide-chart" });
    this._line = el("p", { class: "lowtide-line", "aria-live": "polite" });
    this.element = el("div", { class: "lowtide-chart-view" }, this._canvas, this._line);
    this._canvas.addEventListener("pointermove", (event) => {
      const box = this._at(event);
      if (box) this._say(box.span);
    });
    this._canvas.addEventListener("click", (event) => {
      const box = this._at(event);
      if (box) choose(box.span.node);
    });
  }

  _at({ offsetX, offsetY }) {
    return this._boxes.find(
      (box) => offsetX >= box.x && offsetX <= box.x + box.width && offsetY >= box.y && offsetY < box.y + 16,
    );
  }

  _say(span) {
    this._line.textContent = span ? spanText(span) : t("timeline.point");
  }

  /** Draw a run to the width there is; to be called while the element is in the page. */
  paint(run, chosen) {
    const room = this.element.parentElement;
    const width = Math.max(LEAST_WIDTH, this.element.clientWidth || 0);
    const height = Math.min(MOST_HEIGHT, Math.max(LEAST_HEIGHT, (room?.clientHeight ?? 0) - LINE_PX));
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    this._canvas.width = width * ratio;
    this._canvas.height = height * ratio;
    this._canvas.style.width = `${width}px`;
    this._canvas.style.height = `${height}px`;
    const ctx = this._canvas.getContext("2d");
    ctx.scale(ratio, ratio);
    this._boxes = drawRun(ctx, run, width, height, chosen);
    const span = peakSpan(run);
    const whose = span ? `#${clean(span.node, 20)} ${clean(span.class_type, 40)}` : "–";
    this._canvas.setAttribute(
      "aria-label",
      t("timeline.picture", { count: (run.nodes ?? []).length, node: whose }),
    );
    this._say((run.nodes ?? []).find((it) => it.node === chosen) ?? null);
  }
}
