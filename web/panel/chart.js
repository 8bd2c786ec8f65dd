// Draws a run: memory over time as areas, nodes as coloured spans below, the peak and whose it is.
import { bytes, clean, seconds } from "../format.js";
import { t } from "../texts.js";
import { theme } from "./theme.js";

const LEFT = 70;
const RIGHT = 12;
const TOP = 20;
const LANE_PX = 16;
const AXIS_PX = 18;
const LANES = 2;
const GRID = 4;
const LAYERS = [
  { at: 3, fill: "rgba(156, 163, 175, 0.35)", key: "others" },
  { at: 2, fill: "rgba(147, 197, 253, 0.45)", key: "reserved" },
  { at: 1, fill: "rgba(59, 130, 246, 0.75)", key: "allocated" },
];

/** A steady colour for a node's class. */
export function classColour(text) {
  let hash = 0;
  for (const character of String(text)) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  return `hsl(${hash % 360}, 55%, 42%)`;
}

/** The node during which the run had most allocated, or null. */
export function peakSpan(run) {
  const known = (run.nodes ?? []).filter((span) => typeof span.peak_allocated === "number");
  return known.reduce((a, b) => (a && a.peak_allocated >= b.peak_allocated ? a : b), null);
}

/** Where the run's figures stand on a canvas of `width` x `height` CSS pixels. */
export function layout(run, width, height) {
  const samples = run.samples ?? [];
  const spans = run.nodes ?? [];
  const end = Math.max(
    run.seconds ?? 0,
    samples.at(-1)?.[0] ?? 0,
    ...spans.map((span) => span.started + span.seconds),
    1e-3,
  );
  const figures = samples.flatMap((sample) => sample.slice(1)).filter((it) => typeof it === "number");
  const most = Math.max(run.peak_allocated ?? 0, ...spans.map((it) => it.peak_allocated ?? 0), ...figures, 1);
  const bottom = Math.max(TOP + 30, height - AXIS_PX - LANES * LANE_PX);
  return {
    width, height, bottom, end, most,
    x: (time) => LEFT + ((width - LEFT - RIGHT) * time) / end,
    y: (count) => bottom - ((bottom - TOP) * count) / (most * 1.05),
  };
}

/** Node boxes, each in the first lane that is free: {span, x, width, y}. */
export function boxes(run, place) {
  const ends = Array(LANES).fill(-Infinity);
  const sorted = [...(run.nodes ?? [])].sort((a, b) => a.started - b.started);
  return sorted.map((span) => {
    const x = place.x(span.started);
    const width = Math.max(2, place.x(span.started + span.seconds) - x);
    let lane = ends.findIndex((end) => end <= x + 0.5);
    if (lane < 0) lane = LANES - 1;
    ends[lane] = x + width;
    return { span, x, width, y: place.bottom + AXIS_PX + lane * LANE_PX };
  });
}

function area(ctx, place, samples, at) {
  const points = samples.filter((sample) => typeof sample[at] === "number");
  if (points.length < 2) return;
  ctx.beginPath();
  ctx.moveTo(place.x(points[0][0]), place.bottom);
  for (const sample of points) ctx.lineTo(place.x(sample[0]), place.y(sample[at]));
  ctx.lineTo(place.x(points.at(-1)[0]), place.bottom);
  ctx.closePath();
  ctx.fill();
}

function axes(ctx, place, colours) {
  ctx.font = colours.font;
  ctx.textBaseline = "middle";
  for (let line = 0; line <= GRID; line += 1) {
    const count = (place.most * line) / GRID;
    const y = place.y(count);
    ctx.fillStyle = colours.border;
    ctx.fillRect(LEFT, Math.round(y), place.width - LEFT - RIGHT, 1);
    ctx.fillStyle = colours.text;
    ctx.textAlign = "right";
    ctx.fillText(bytes(count), LEFT - 6, y);
    ctx.textAlign = line === GRID ? "right" : "center";
    const time = (place.end * line) / GRID;
    ctx.fillText(seconds(time), place.x(time), place.bottom + AXIS_PX / 2);
  }
}

function peak(ctx, run, place, colours) {
  const span = peakSpan(run);
  const count = run.peak_allocated ?? span?.peak_allocated ?? null;
  if (count === null) return;
  const y = Math.round(place.y(count));
  ctx.strokeStyle = colours.error;
  ctx.setLineDash([4, 3]);
  ctx.beginPath();
  ctx.moveTo(LEFT, y + 0.5);
  ctx.lineTo(place.width - RIGHT, y + 0.5);
  ctx.stroke();
  ctx.setLineDash([]);
  const whose = span ? ` · #${clean(span.node, 20)} ${clean(span.class_type, 40)}` : "";
  const middle = span ? place.x(span.started + span.seconds / 2) : place.width / 2;
  const text = `${t("figures.peak")} ${bytes(count)}${whose}`;
  const half = ctx.measureText(text).width / 2;
  ctx.fillStyle = colours.text;
  ctx.textAlign = "center";
  const right = Math.max(LEFT + half, place.width - RIGHT - half);
  ctx.fillText(text, Math.min(Math.max(middle, LEFT + half), right), Math.max(8, y - 9));
  if (span) {
    ctx.fillStyle = colours.error;
    ctx.beginPath();
    ctx.arc(middle, y, 4, 0, 2 * Math.PI);
    ctx.fill();
  }
}

/** Draw; returns the boxes of the nodes, for what the pointer is over. */
export function drawRun(ctx, run, width, height, chosen = null) {
  const colours = theme();
  const place = layout(run, width, height);
  ctx.fillStyle = colours.background;
  ctx.fillRect(0, 0, width, height);
  for (const layer of LAYERS) {
    ctx.fillStyle = layer.fill;
    area(ctx, place, run.samples ?? [], layer.at);
  }
  axes(ctx, place, colours);
  const drawn = boxes(run, place);
  for (const box of drawn) {
    ctx.fillStyle = classColour(box.span.class_type);
    ctx.fillRect(box.x, box.y, box.width, LANE_PX - 2);
    if (box.span.node === chosen || box.span.status === "failed") {
      ctx.strokeStyle = box.span.status === "failed" ? colours.error : colours.text;
      ctx.lineWidth = 2;
      ctx.strokeRect(box.x, box.y, box.width, LANE_PX - 2);
      ctx.lineWidth = 1;
    }
    const text = `#${clean(box.span.node, 12)} ${clean(box.span.class_type, 30)}`;
    if (box.width > 50) {
      ctx.save();
      ctx.beginPath();
      ctx.rect(box.x, box.y, box.width, LANE_PX);
      ctx.clip();
      ctx.fillStyle = "#ffffff";
      ctx.textAlign = "left";
      ctx.fillText(text, box.x + 4, box.y + LANE_PX / 2 - 1);
      ctx.restore();
    }
  }
  peak(ctx, run, place, colours);
  return drawn;
}

/** What a span was, in one line. */
export function spanText(span) {
  return [
    `#${clean(span.node, 20)} ${clean(span.class_type, 40)}`,
    seconds(span.seconds),
    `${t("figures.peak")} ${bytes(span.peak_allocated)}`,
    `${t("timeline.before")} ${bytes(span.before)}`,
    `${t("timeline.after")} ${bytes(span.after)}`,
    `${t("timeline.moved")} ${bytes(span.to_device)}`,
  ].join(" · ");
}

/** The picture of a run at a size of its own. */
export function runCanvas(run, width = 1200, height = 360, scale = 2) {
  const canvas = document.createElement("canvas");
  canvas.width = width * scale;
  canvas.height = height * scale;
  const ctx = canvas.getContext("2d");
  ctx.scale(scale, scale);
  drawRun(ctx, run, width, height);
  return canvas;
}
