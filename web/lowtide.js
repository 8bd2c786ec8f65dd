// Lowtide in ComfyUI's interface: the one file that registers something. It wires the parts together.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Actions, receiptText } from "./actions.js";
import { Badges } from "./badges.js";
import { Chip } from "./chip.js";
import { Fit } from "./fit.js";
import { classicMenus, classicNodeMenu, Menus } from "./menus.js";
import { Panel } from "./panel/panel.js";
import { Rescue } from "./rescue.js";
import * as keys from "./settings.js";
import { Store } from "./state.js";
import { loadTexts } from "./texts.js";

const TITLE_COLOUR = "#2b6f7f";

export const store = new Store(async () => {
  const answer = await api.fetchApi("/lowtide/state");
  if (!answer.ok) throw new Error(`/lowtide/state: ${answer.status}`);
  return answer.json();
});
const actions = new Actions(app, api, store);
export const fit = new Fit(app, actions);
export const badges = new Badges(app, api, store, fit);
export const panel = new Panel({ app, store, actions, fit });
export const chip = new Chip(app, store, () => panel.toggle());
export const menus = new Menus({ store, actions, badges, panel, fit });
const rescue = new Rescue(actions);
const hasMenuHooks = typeof app.collectNodeMenuItems === "function";

// Before anything is sent: the frontend complains about messages nobody listens to.
for (const kind of ["sample", "models", "node", "run", "receipt", "next"]) {
  api.addEventListener(`lowtide.${kind}`, ({ detail }) => {
    store.accept(kind, detail);
    if (kind === "receipt") sayReceipt(detail);
  });
}
api.addEventListener("lowtide.rescue", ({ detail }) => void rescue.hear(detail));
api.addEventListener("reconnecting", () => {
  store.disconnect();
  rescue.forget();
});
api.addEventListener("reconnected", () => store.refresh());

/** Receipts this tab was promised; of other cleanups those of nodes, if people want to hear of them. */
function sayReceipt(detail) {
  const receipt = detail?.receipt;
  const asked = receipt?.by === "user";
  const wanted = asked ? actions.owed() : keys.setting(app, keys.RECEIPT_TOASTS);
  if (receipt && wanted && !document.hidden) actions.toast(asked ? "success" : "info", receiptText(receipt));
}

function settingChanged(id) {
  setTimeout(() => chip.refresh(true)); // the value is stored after this call
  if (id === keys.BADGES || id === keys.HEAT) badges.refresh();
}

function command(id, label, icon, run) {
  return { id: `Lowtide.${id}`, label, icon: `pi ${icon}`, function: run };
}

const commands = [
  command("FreeVram", "Lowtide: free device memory now", "pi-trash", () => actions.free("vram")),
  command("FreeAll", "Lowtide: free device and host memory", "pi-trash", () => actions.free("both")),
  command("CheckFit", "Lowtide: check whether this graph fits", "pi-check-circle", () => fit.check()),
  command("NextLevel", "Lowtide: next level for the next runs", "pi-sliders-h", () => actions.cycle()),
  command("ClearLevel", "Lowtide: level and budget as in the graph", "pi-undo", () => actions.next(null, null)),
  command("TogglePanel", "Lowtide: show or hide the panel", "pi-microchip", () => panel.toggle()),
  command("ResetChip", "Lowtide: put the chip back in its place", "pi-replay", () => chip.resetPlace()),
];

function addStyles() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./lowtide.css", import.meta.url).href;
  document.head.append(link);
}

app.registerExtension({
  name: "lowtide.overlay",
  settings: keys.settings(settingChanged),
  commands,
  keybindings: [
    { combo: { key: "u", alt: true, shift: true }, commandId: "Lowtide.FreeVram" },
    { combo: { key: "k", alt: true, shift: true }, commandId: "Lowtide.CheckFit" },
    { combo: { key: "l", alt: true, shift: true }, commandId: "Lowtide.TogglePanel" },
  ],
  menuCommands: [{ path: ["Extensions", "Lowtide"], commands: commands.map((it) => it.id) }],
  aboutPageBadges: [
    { label: "Lowtide", url: "https://github.com/lowtide/lowtide", icon: "pi pi-microchip" },
  ],
  actionBarButtons: [chip.button()],
  bottomPanelTabs: [panel.tab()],
  getNodeMenuItems: (node) => [null, ...menus.forNode(node)],
  getCanvasMenuItems: () => [null, ...menus.forCanvas()],

  beforeRegisterNodeDef(type, definition) {
    // A colour of the class is drawn where a node has none of its own, and is never saved.
    if (definition.category === "Lowtide") type.color = TITLE_COLOUR;
    if (!hasMenuHooks) classicNodeMenu(type, menus);
  },

  nodeCreated(node) {
    badges.dress(node);
  },

  afterConfigureGraph() {
    badges.refresh();
  },

  async setup() {
    addStyles();
    await loadTexts(api, app.extensionManager?.setting?.get("Comfy.Locale") ?? "en");
    if (!hasMenuHooks) classicMenus(app, menus);
    chip.start();
    badges.start();
    await store.refresh();
  },
});
