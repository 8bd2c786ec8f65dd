// The bottom panel: views to choose from, each as a table, some as a chart, all to be saved.
import { el, painter } from "../dom.js";
import { t } from "../texts.js";
import { Chart } from "./chart_view.js";
import { controls } from "./controls.js";
import { runCanvas } from "./chart.js";
import { saveJson, savePng } from "./export.js";
import { fit } from "./fit.js";
import { history } from "./history.js";
import { models } from "./models.js";
import { receipts } from "./receipts.js";
import { tableCanvas, tableElement } from "./table.js";
import { timeline } from "./timeline.js";

const VIEWS = [models, timeline, receipts, history, fit];
const OPENED_MS = 600; // by then the panel that was asked for is on the page
const WRITTEN_MS = 700; // after a run its row of the history is there
export const TAB = "lowtide";

export class Panel {
  /** @param context {app, store, actions, fit}: what the views read and the buttons do. */
  constructor(context) {
    this.context = {
      ...context,
      chosen: { run: null, node: null },
      choose: (node) => this._choose(node),
    };
    this.view = VIEWS[0];
    this.asTable = false;
    this.painted = 0;
    this._root = null;
    this._historyOf = undefined; // the last run the history was fetched after
    this._ask = painter(() => this._paint());
    this._chart = new Chart((node) => this._choose(node));
    const topics = [...new Set(VIEWS.flatMap((view) => view.topics)), "next"];
    for (const topic of topics) {
      context.store.on(topic, () => {
        if (topic === "next" || this.view.topics.includes(topic)) this._ask();
      });
    }
    context.store.on("runs", () => this.view === history && this._history(WRITTEN_MS));
    context.fit.on(() => this._ask());
    window.addEventListener("resize", () => this._ask());
  }

  /** The tab of ComfyUI's bottom panel. */
  tab() {
    return {
      id: TAB,
      title: "Lowtide",
      type: "custom",
      render: (container) => this._render(container),
      destroy: () => (this._root = null),
    };
  }

  get isOpen() {
    return Boolean(this._root?.isConnected && this._root.getClientRects().length);
  }

  /** Show a view, and of the timeline a run and one of its nodes. */
  async open(view, { run = null, id = null } = {}) {
    this.view = VIEWS.find((known) => known.id === view) ?? this.view;
    // Of the last run nothing is chosen: the view goes on with the next one.
    this.context.chosen.run = run === this.context.store.state.runs.at(-1)?.run ? null : run;
    this.context.chosen.node = id;
    if (this.isOpen) this._ask();
    else await this.toggle(); // which paints it
  }

  /** Open or close it; says why where ComfyUI has no bottom panel, as with its old menu. */
  async toggle() {
    const wasOpen = this.isOpen;
    const command = this.context.app.extensionManager?.command;
    await command?.execute(`Workspace.ToggleBottomPanelTab.${TAB}`);
    await new Promise((resolve) => setTimeout(resolve, OPENED_MS));
    if (!wasOpen && !this.isOpen) this.context.actions.toast("warn", t("panel.nowhere"));
  }

  _render(container) {
    // The container may be one that another tab has used: what we paint is a child of our own.
    this._controls = controls(this.context);
    this._tabs = el("div", { role: "tablist", class: "lowtide-tabs", "aria-label": t("panel.views") });
    for (const view of VIEWS) {
      this._tabs.append(
        el("button", {
          type: "button",
          role: "tab",
          id: `lowtide-tab-${view.id}`,
          "data-view": view.id,
          "aria-controls": "lowtide-view",
          onclick: () => this._show(view),
          onkeydown: (event) => this._step(event),
        }, t(`${view.id}.title`)),
      );
    }
    this._tools = el("div", { class: "lowtide-tools" });
    this._view = el("div", { role: "tabpanel", id: "lowtide-view", class: "lowtide-view", tabindex: "0" });
    this._root = el(
      "section",
      { class: "lowtide-panel", "aria-label": "Lowtide" },
      el("div", { class: "lowtide-bar" }, this._tabs, this._controls.element),
      this._tools,
      this._view,
    );
    container.replaceChildren(this._root);
    container.style.height = "100%"; // older frontends leave it as low as what is in it
    this._ask();
  }

  _show(view) {
    this.view = view;
    this._ask();
  }

  /** No message brings the history: fetch it where it is looked at and a run has ended since. */
  _history(wait) {
    const last = this.context.store.state.runs.at(-1)?.run;
    if (last === this._historyOf || document.hidden || !this._root?.isConnected) return;
    this._historyOf = last;
    setTimeout(() => this.context.store.refresh(), wait);
  }

  _step(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const count = VIEWS.length;
    this._show(VIEWS[(VIEWS.indexOf(this.view) + step + count) % count]);
    this._tabs.querySelector(`[data-view="${this.view.id}"]`).focus();
  }

  _choose(node) {
    this.context.chosen.node = this.context.chosen.node === node ? null : node;
    this._ask();
  }

  _paint() {
    const root = this._root;
    if (!root?.isConnected) return;
    this.painted += 1;
    for (const tab of this._tabs.children) {
      const on = tab.dataset.view === this.view.id;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
    }
    this._controls.update();
    const focused = document.activeElement?.dataset?.key;
    this._view.setAttribute("aria-labelledby", `lowtide-tab-${this.view.id}`);
    const table = this.view.table(this.context);
    const charted = this._charted(table);
    this._tools.replaceChildren(...this._toolbar(table, charted));
    this._view.replaceChildren(charted ? this._chart.element : tableElement(table));
    if (charted) this._chart.paint(this.view.data(this.context), this.context.chosen.node);
    if (focused) root.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
    if (this.view === history) this._history(0);
  }

  _charted(table) {
    return Boolean(this.view.chart && !this.asTable && table.rows.length);
  }

  _toolbar(table, charted) {
    const made = [];
    const choices = this.view.choices?.(this.context) ?? [];
    if (choices.length) {
      const run = this.view.data(this.context)?.run;
      made.push(
        el(
          "select",
          {
            "data-key": "run",
            "aria-label": t("timeline.run"),
            onchange: (event) => {
              this.context.chosen.run = event.target.value === choices[0].value ? null : event.target.value;
              this._ask();
            },
          },
          ...choices.map((it) => el("option", { value: it.value, selected: it.value === run }, it.label)),
        ),
      );
    }
    const offline = this.context.store.connected ? null : t("chip.offlineLong");
    const summary = offline ?? this.view.summary?.(this.context) ?? "";
    made.push(el("span", { class: "lowtide-summary", role: offline && "status" }, summary));
    const button = (key, label, run, more = {}) =>
      el("button", { type: "button", class: "lowtide-button", "data-key": key, onclick: run, ...more }, label);
    if (this.view.chart) {
      const flip = () => {
        this.asTable = !this.asTable;
        this._ask();
      };
      made.push(button("table", t("panel.table"), flip, { "aria-pressed": String(this.asTable) }));
    }
    if (this.view === history && this.context.store.state.history) {
      made.push(button("reset", t("history.reset"), () => this.context.actions.resetHistory()));
    }
    if (this.view === fit && this.context.fit.result) {
      made.push(button("clear", t("fit.clear"), () => this.context.fit.clear()));
    }
    const id = this.view.id;
    const data = () => this.view.data(this.context);
    made.push(
      button("json", "JSON", () => saveJson(id, data()), { "aria-label": t("panel.json") }),
      button("png", "PNG", () => savePng(id, charted ? runCanvas(data()) : tableCanvas(table)), {
        "aria-label": t("panel.png"),
      }),
    );
    return made;
  }
}
