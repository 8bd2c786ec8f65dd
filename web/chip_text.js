// What the chip says and shows of the figures; pure, and the same for every frontend.
import { bytes, clean, gigabytes, percent } from "./format.js";

const COLOURS = {
  allocated: "#3b82f6",
  reserved: "#93c5fd",
  others: "#9ca3af",
  host: "#34d399",
  empty: "rgba(127, 127, 127, 0.25)",
};
const HIGH = 80;
const FULL = 93;
const BAR_PX = 3;

/** Bytes of a device in use by everyone; what our process holds where the driver says nothing. */
export function used(device) {
  if (device.free !== null && device.total !== null) return device.total - device.free;
  return device.reserved ?? device.allocated;
}

export function hostUsed(host) {
  const { total, available } = host ?? {};
  return typeof total === "number" && typeof available === "number" ? total - available : null;
}

/** Devices with memory of their own; the CPU's is the host's. */
export function accelerators(devices) {
  return devices.filter((device) => !/^cpu\b/.test(String(device.id)));
}

/** "calm", "high" or "full", by the fullest device. */
export function pressure(devices) {
  const shares = accelerators(devices).map((it) => percent(used(it), it.total) ?? 0);
  const most = Math.max(0, ...shares);
  return most >= FULL ? "full" : most >= HIGH ? "high" : "calm";
}

function amount(part, whole, compact) {
  const share = percent(part, whole);
  if (compact && share !== null) return `${share}%`;
  if (typeof whole !== "number") return `${gigabytes(part)} GB`;
  return `${gigabytes(part)}/${gigabytes(whole)} GB`;
}

/** One line: "VRAM 3.1/8.0 GB · RAM 9.2/31 GB". `shown`: {vram, ram, peak, compact}. */
export function chipLabel(store, shown, t) {
  if (!store.connected) return t("chip.offline");
  const { devices, host } = store.state;
  const parts = [];
  const all = accelerators(devices);
  const word = shown.compact ? "V" : "VRAM";
  if (shown.vram && all.length > 2) {
    const fullest = all.reduce((a, b) =>
      (percent(used(a), a.total) ?? 0) >= (percent(used(b), b.total) ?? 0) ? a : b,
    );
    parts.push(`${word} ${amount(used(fullest), fullest.total, shown.compact)} (${all.length})`);
  } else if (shown.vram) {
    all.forEach((device, index) => {
      const title = all.length > 1 ? `${word}${index}` : word;
      parts.push(`${title} ${amount(used(device), device.total, shown.compact)}`);
    });
  }
  if (shown.peak) all.forEach((device) => parts.push(`↑${gigabytes(device.peak)}`));
  if (shown.ram) {
    const title = shown.compact ? "R" : "RAM";
    parts.push(`${title} ${amount(hostUsed(host), host?.total, shown.compact)}`);
  }
  return parts.join(" · ") || "Lowtide";
}

/** The label with every figure behind it, as one text of several lines. */
export function chipTooltip(store, shown, t) {
  if (!store.connected) return t("chip.offlineLong");
  const { devices, host, running } = store.state;
  const lines = [chipLabel(store, shown, t)];
  for (const device of accelerators(devices)) {
    const figures = [
      `${bytes(used(device))} / ${bytes(device.total)}`,
      `${t("figures.allocated")} ${bytes(device.allocated)}`,
      `${t("figures.reserved")} ${bytes(device.reserved)}`,
      device.pages ? `${t("figures.pages")} ${bytes(device.pages)}` : null,
      `${t("figures.others")} ${bytes(device.others)}`,
      `${t("figures.peak")} ${bytes(device.peak)}`,
    ];
    const title = clean(device.name ?? device.id, 40);
    lines.push(`${title} (${clean(device.id, 16)}): ${figures.filter(Boolean).join(", ")}`);
  }
  const rss = host?.rss ?? null;
  lines.push(
    `RAM: ${gigabytes(hostUsed(host))} / ${gigabytes(host?.total ?? null)} GB` +
      (rss === null ? "" : `, ${t("figures.process")} ${gigabytes(rss)} GB`),
  );
  lines.push(running ? t("chip.running") : t("chip.idle"));
  return lines.join("\n");
}

function stripes(parts, total) {
  let from = 0;
  const stops = [];
  for (const [colour, part] of parts) {
    const width = total > 0 && part > 0 ? (100 * part) / total : 0;
    const to = Math.min(100, from + width);
    // Whole percents: what changes all the time would be painted all the time.
    stops.push(`${colour} ${from.toFixed(0)}% ${to.toFixed(0)}%`);
    from = to;
  }
  stops.push(`${COLOURS.empty} ${from.toFixed(0)}% 100%`);
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

/** The bars as CSS background properties: one row a device, one for the host. */
export function chipBars(store, shown) {
  const rows = [];
  if (store.connected && shown.bars) {
    if (shown.vram) {
      for (const device of accelerators(store.state.devices).slice(0, 4)) {
        const inner = (device.allocated ?? 0) + (device.pages ?? 0);
        const outer = Math.max(0, (device.reserved ?? 0) - (device.allocated ?? 0));
        const parts = [
          [COLOURS.allocated, inner],
          [COLOURS.reserved, outer],
          [COLOURS.others, device.others ?? Math.max(0, (used(device) ?? 0) - inner - outer)],
        ];
        rows.push(stripes(parts, device.total ?? 0));
      }
    }
    const host = store.state.host;
    if (shown.ram) rows.push(stripes([[COLOURS.host, hostUsed(host) ?? 0]], host?.total ?? 0));
  }
  const step = BAR_PX + 1;
  return {
    "background-image": rows.length ? rows.join(", ") : "none",
    "background-size": rows.map(() => `calc(100% - 20px) ${BAR_PX}px`).join(", ") || "auto",
    "background-position":
      rows.map((_, i) => `10px calc(100% - ${1 + step * (rows.length - 1 - i)}px)`).join(", ") ||
      "0 0",
    "padding-bottom": `${rows.length ? step * rows.length : 0}px`,
  };
}

