// Lowtide's entries in ComfyUI's settings. `onChange` also fires at page load: it only repaints.

export const CHIP_SHOW = "Lowtide.Chip.Show";
export const CHIP_VRAM = "Lowtide.Chip.Vram";
export const CHIP_RAM = "Lowtide.Chip.Ram";
export const CHIP_PEAK = "Lowtide.Chip.Peak";
export const CHIP_BARS = "Lowtide.Chip.Bars";
export const CHIP_COMPACT = "Lowtide.Chip.Compact";
export const BADGES = "Lowtide.Badges.Show";
export const HEAT = "Lowtide.Badges.Heat";
export const RECEIPT_TOASTS = "Lowtide.Receipts.Toasts";

const ENTRIES = [
  [CHIP_SHOW, "Show memory in the top bar", true, null],
  [CHIP_VRAM, "Top bar: device memory", true, null],
  [CHIP_RAM, "Top bar: host memory", true, null],
  [CHIP_PEAK, "Top bar: peak since the server started", false, null],
  [CHIP_BARS, "Top bar: bars", true, null],
  [CHIP_COMPACT, "Top bar: only percentages", "narrow", ["narrow", "always", "never"]],
  [BADGES, "Show the peak of the last run on each node", true, null],
  [HEAT, "Colour nodes by what they cost", "off", ["off", "peak", "time"]],
  [RECEIPT_TOASTS, "Say what cleanups between nodes gave back", false, null],
];

const DEFAULTS = Object.fromEntries(ENTRIES.map(([id, , value]) => [id, value]));

/** For `registerExtension`; `changed(id)` is called whenever one of them changes. */
export function settings(changed) {
  return ENTRIES.map(([id, name, defaultValue, options], index) => ({
    id,
    name,
    category: ["Lowtide", id.split(".")[1], id.split(".")[2]],
    type: options ? "combo" : "boolean",
    ...(options ? { options } : {}),
    defaultValue,
    sortOrder: ENTRIES.length - index,
    onChange: () => changed(id),
  }));
}

/** The value of a setting now; its default before ComfyUI has loaded it. */
export function setting(app, id) {
  return app.extensionManager?.setting?.get(id) ?? DEFAULTS[id];
}
