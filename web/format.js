// Bytes, times and names as people read them. Pure functions; unknown is null and shows as a dash.

const KIB = 1024;
const MIB = KIB * 1024;
export const GIB = MIB * 1024;
export const UNKNOWN = "–";

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** "1.50 GB", "25.8 MB": as Lowtide's nodes and receipts write it. */
export function bytes(count) {
  if (!known(count)) return UNKNOWN;
  const size = Math.abs(count);
  if (size >= GIB) return `${(count / GIB).toFixed(2)} GB`;
  if (size >= MIB) return `${(count / MIB).toFixed(1)} MB`;
  if (size >= KIB) return `${(count / KIB).toFixed(1)} KB`;
  return `${count} B`;
}

/** Bytes as a bare number of GB, short: "3.1", "31". */
export function gigabytes(count) {
  if (!known(count)) return UNKNOWN;
  const value = count / GIB;
  return value.toFixed(value < 9.95 ? 1 : 0);
}

export function percent(part, whole) {
  return known(part) && known(whole) && whole > 0 ? Math.round((100 * part) / whole) : null;
}

/** Signed deviation of a measured figure from a predicted one: "+4%". */
export function deviation(predicted, measured) {
  if (!known(predicted) || !known(measured) || measured <= 0) return UNKNOWN;
  const value = Math.round((100 * (predicted - measured)) / measured);
  return `${value > 0 ? "+" : ""}${value}%`;
}

export function seconds(value) {
  if (!known(value)) return UNKNOWN;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return value < 60 ? `${value.toFixed(1)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** Wall clock of a Unix time, in the browser's own manner. */
export function clock(unix) {
  return known(unix) ? new Date(unix * 1000).toLocaleTimeString() : UNKNOWN;
}

// Control characters; marks and overrides that turn the direction of what follows them.
const UNSAFE = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]+/g;

/** A name or sentence from outside on one line, without control characters, of bounded length. */
export function clean(value, limit = 120) {
  if (value === null || value === undefined) return UNKNOWN;
  const text = String(value).slice(0, 4 * limit + 64).replace(UNSAFE, " ").trim();
  const points = [...text];
  return points.length > limit ? `${points.slice(0, limit - 1).join("")}…` : text;
}
