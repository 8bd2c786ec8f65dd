// The row of controls above every view: level and budget of the next runs, free now, fit check.
import { el } from "../dom.js";
import { t } from "../texts.js";

const LEVELS = ["", "none", "balanced", "aggressive", "ultra"];
const MOST_GB = 1024;

/** {element, update}: `update` brings it in line with the server, but for what is being typed. */
export function controls({ store, actions, fit }) {
  const level = el(
    "select",
    { "aria-label": t("next.level"), title: t("next.hint"), "data-key": "level" },
    ...LEVELS.map((it) => el("option", { value: it }, it === "" ? t("next.graph") : it.toUpperCase())),
  );
  const budget = el("input", {
    type: "number",
    min: "0",
    max: String(MOST_GB),
    step: "0.1",
    placeholder: t("next.budget"),
    "aria-label": t("next.budgetLong"),
    title: t("next.hint"),
    "data-key": "budget",
  });
  const send = async () => {
    const typed = budget.value.trim() === "" ? 0 : Number(budget.value);
    const wanted = Number.isFinite(typed) && typed > 0 ? Math.min(typed, MOST_GB) : null;
    const sent = budget.value;
    await actions.next(level.value || null, wanted);
    update(budget.value === sent); // what was typed meanwhile stays
  };
  level.addEventListener("change", send);
  budget.addEventListener("change", send);
  // Keys typed here are not ComfyUI's shortcuts.
  budget.addEventListener("keydown", (event) => event.stopPropagation());

  const button = (key, icon, run) =>
    el(
      "button",
      { type: "button", class: "lowtide-button", "data-key": key, title: t(`${key}.hint`), onclick: run },
      el("i", { class: `pi ${icon}`, "aria-hidden": "true" }),
      ` ${t(`${key}.button`)}`,
    );
  const free = button("free", "pi-trash", () => actions.free("vram"));
  const check = button("check", "pi-check-circle", () => fit.check());

  function update(force = false) {
    const next = store.state.next;
    level.value = next.level ?? "";
    if (force || document.activeElement !== budget) budget.value = next.budget_gb ?? "";
    level.classList.toggle("lowtide-on", next.level !== null);
    budget.classList.toggle("lowtide-on", next.budget_gb !== null);
    check.disabled = fit.busy;
    for (const control of [level, budget, free]) control.disabled = !store.connected;
  }

  const element = el(
    "div",
    { class: "lowtide-controls", role: "group", "aria-label": t("panel.controls") },
    el("span", {}, t("next.label")),
    level,
    budget,
    free,
    check,
  );
  return { element, update };
}
