// The memory map of a checkpoint: a picture of cells, its legend, and the list of mappings.
import { $, make, text, attribute } from "./dom.js";
import { bytes, hex, number, percent, plural } from "./format.js";

const kinds = {
  HEAP: ["heap", "Heap"], STACK: ["stack", "Stack"], ANONYMOUS: ["anonymous", "Anonymous"], FILE: ["file", "File, private"],
  SHARED: ["shared", "Shared"], HUGE: ["huge", "Huge pages"], KERNEL: ["kernel", "Kernel"], UNSPECIFIED: ["unknown", "Not known"],
};
const kindOf = item => kinds[(item.kind ?? "MEMORY_KIND_UNSPECIFIED").replace("MEMORY_KIND_", "")] ?? kinds.UNSPECIFIED;

const changes = [
  ["changed", "Changed", "stored here"], ["changedPartly", "Changed in part", "stored here as a difference"],
  ["storedAgain", "Stored again", "by CRIU, changed or not"],
  ["unchanged", "Unchanged", "stored by an ancestor"], ["zero", "Zeros", "stored nowhere"],
];

const partsOf = item => Object.fromEntries(changes.map(([name]) => [name, number(item.parts?.[name])]));
const sumOf = parts => changes.reduce((sum, [name]) => sum + parts[name], 0);
const none = Object.fromEntries(changes.map(([name]) => [name, 0]));

let shown = null; // what the daemon gave
let cells = []; // of it, with numbers
let mode = "kind";
let cursor = 0;
let layout = null;

const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// pattern draws lines over a filled box, so that nobody needs to tell its colour.
function pattern(g, name, x, y, size) {
  g.strokeStyle = css("--panel");
  g.fillStyle = css("--panel");
  g.globalAlpha = 0.6;
  g.lineWidth = Math.max(1, size / 10);
  const line = (x1, y1, x2, y2) => { g.beginPath(); g.moveTo(x + x1 * size, y + y1 * size); g.lineTo(x + x2 * size, y + y2 * size); g.stroke(); };
  switch (name) {
    case "heap": line(0, 0.5, 1, 0.5); break;
    case "stack": line(0, 1, 1, 0); break;
    case "file": line(0.5, 0, 0.5, 1); break;
    case "shared": g.fillRect(x + size * 0.35, y + size * 0.35, size * 0.3, size * 0.3); break;
    case "huge": line(0, 0.5, 1, 0.5); line(0.5, 0, 0.5, 1); break;
    case "kernel": line(0, 0, 1, 1); line(0, 1, 1, 0); break;
    case "partly": line(0, 1, 1, 0); break;
    case "again": g.fillRect(x + size * 0.3, y + size * 0.3, size * 0.4, size * 0.4); break;
  }
}

// box draws a cell: from below what is stored, by its parts, and what is zero as an outline only.
function box(g, x, y, size, kind, parts) {
  const sum = sumOf(parts) || 1;
  g.strokeStyle = css("--zero");
  g.lineWidth = 1;
  if (parts.zero > 0) g.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
  let bottom = y + size;
  const fill = (share, colour, name) => {
    if (share <= 0) return;
    const height = Math.max(2, size * share / sum);
    g.save();
    g.beginPath();
    g.rect(x, Math.max(y, bottom - height), size, height);
    g.clip();
    g.fillStyle = css(colour);
    g.fillRect(x, y, size, size);
    if (name) pattern(g, name, x, y, size);
    g.restore();
    bottom -= height;
  };
  if (mode === "kind") fill(sum - parts.zero, `--${kind}`, kind);
  else {
    fill(parts.changed, "--changed");
    fill(parts.changedPartly, "--partly", "partly");
    fill(parts.storedAgain, "--again", "again");
    fill(parts.unchanged, "--unchanged");
  }
}

// place decides where each cell goes: in rows, with a line of text before each process.
function place(width) {
  const gap = 2, size = cells.length > 600 ? (width < 600 ? 8 : 12) : width < 600 ? 11 : 15, step = size + gap, columns = Math.max(1, Math.floor((width + gap) / step));
  const labels = [], spots = [];
  let y = 0, column = 0, pid = null;
  for (const cell of cells) {
    if (cell.pid !== pid) {
      if (pid !== null) y += (column > 0 ? step : 0) + 8;
      pid = cell.pid;
      column = 0;
      const process = shown.processes.find(p => p.pid === pid);
      labels.push([`${process?.command ?? ""} (${pid}), ${bytes(sumOf(partsOf(process ?? {})))}`, y + 13]);
      y += 22;
    }
    if (column === columns) { column = 0; y += step; }
    spots.push([column * step, y]);
    column++;
  }
  return { size, step, columns, labels, spots, height: cells.length ? y + step : 100 };
}

function draw() {
  const canvas = $("map"), width = Math.floor($("map-box").clientWidth), ratio = window.devicePixelRatio || 1;
  if (!shown || width === 0) return;
  layout = place(width);
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(layout.height * ratio);
  canvas.style.height = `${layout.height}px`;
  const g = canvas.getContext("2d");
  g.scale(ratio, ratio);
  g.clearRect(0, 0, width, layout.height);
  g.font = `13px ${getComputedStyle(document.body).fontFamily}`;
  g.fillStyle = css("--ink2");
  for (const [label, y] of layout.labels) g.fillText(label, 0, y, width);
  if (cells.length === 0) g.fillText("This checkpoint has no memory.", 0, 20);
  cells.forEach((cell, i) => box(g, ...layout.spots[i], layout.size, cell.look, cell.parts));
  if (cells.length) {
    const [x, y] = layout.spots[cursor];
    g.strokeStyle = css("--ink");
    g.lineWidth = 2;
    g.strokeRect(x - 1, y - 1, layout.size + 2, layout.size + 2);
  }
}

function swatch(kind, parts) {
  const canvas = make("canvas", { width: 32, height: 32, "aria-hidden": "true" }), g = canvas.getContext("2d");
  g.scale(2, 2);
  box(g, 0, 0, 16, kind, parts);
  return canvas;
}

function showLegend() {
  const all = number(shown.cellBytes), rows = [];
  if (mode === "kind") {
    for (const total of shown.totals ?? []) {
      const [look, name] = kindOf(total), sum = sumOf(partsOf(total));
      rows.push([swatch(look, { ...none, changed: 1 }), name, sum ? bytes(sum) : "none in the checkpoint"]);
    }
    if (cells.some(c => c.parts.zero > 0)) rows.push([swatch("unknown", { ...none, zero: 1 }), "Zeros", bytes(cells.reduce((n, c) => n + c.parts.zero, 0))]);
  } else {
    const first = !shown.checkpoint.parent;
    for (const [name, word, where] of changes) {
      const sum = cells.reduce((n, c) => n + c.parts[name], 0);
      if (sum === 0 && name === "storedAgain") continue;
      rows.push([swatch("unknown", { ...none, [name]: 1 }), first && name === "changed" ? "New" : word, `${bytes(sum)}, ${first && name === "changed" ? "it has no parent" : where}`]);
    }
  }
  $("legend").replaceChildren(...rows.map(([image, name, value]) => make("li", {}, image, make("span", {}, name), make("small", {}, value))));
  text($("map-scale"), cells.length ? `${plural(cells.length, "cell")} of up to ${bytes(all)}, by process and address` : "");
}

function shares(parts, sum) {
  const first = !shown.checkpoint.parent;
  return changes.filter(([name]) => parts[name] > 0).map(([name, word]) => `${percent(parts[name], sum)} ${first && name === "changed" ? "new" : word.toLowerCase()}`).join(", ");
}

function showReadout() {
  const canvas = $("map");
  if (!cells.length) {
    text($("readout"), "");
    attribute(canvas, "aria-valuetext", "no memory");
    return;
  }
  const cell = cells[cursor], sum = sumOf(cell.parts), process = shown.processes.find(p => p.pid === cell.pid);
  const mapping = (shown.mappings ?? []).findLast(m => m.pid === cell.pid && BigInt(m.start ?? 0) <= cell.start && cell.start < BigInt(m.start ?? 0) + BigInt(m.mapped ?? 0));
  const said = `${hex(cell.start)} to ${hex(cell.end)}: ${bytes(sum)} of ${cell.look === "unknown" ? "memory of a kind that is not known," : `${cell.name.toLowerCase()} memory`} of ${process?.command ?? ""} (${cell.pid})${mapping?.file ? `, ${mapping.file}` : ""}. ${shares(cell.parts, sum)}.`;
  text($("readout"), said);
  attribute(canvas, "aria-valuemax", cells.length);
  attribute(canvas, "aria-valuenow", cursor + 1);
  attribute(canvas, "aria-valuetext", said);
}

// changedWords says how much of a mapping has changed, as far as that is known.
function changedWords(parts, sum) {
  const changed = parts.changed + parts.changedPartly;
  if (sum === 0) return "–";
  if (parts.storedAgain === 0) return bytes(changed);
  return changed ? `${bytes(changed)} or more` : "not known";
}

function showTable() {
  const rows = (shown.mappings ?? []).map(m => {
    const [look, name] = kindOf(m), parts = partsOf(m), sum = sumOf(parts);
    const mark = make("span", { class: "swatch", "aria-hidden": "true" });
    mark.style.background = `var(--${look})`;
    return make("tr", { class: sum ? "" : "none" },
      make("td", {}, hex(m.start)), make("td", {}, String(m.pid)), make("td", {}, mark, name), make("td", { class: "m" }, m.permissions ?? ""),
      make("td", { class: "n" }, bytes(m.mapped)), make("td", { class: "n" }, sum ? bytes(sum) : "–"), make("td", { class: "n" }, changedWords(parts, sum)), make("td", {}, m.file ?? ""));
  });
  $("mappings").replaceChildren(...rows);
  const left = number(shown.mappingsLeftOut);
  text($("table-caption"), plural(rows.length, "mapping") + (left ? `, and ${left} smaller ones that are not shown` : ""));
}

// showMap shows what the daemon says of a checkpoint's memory.
export function showMap(map) {
  const same = shown?.checkpoint.job === map.checkpoint.job && cells.length > 0, at = same && cells[cursor];
  shown = { ...map, processes: map.processes ?? [] };
  cells = (map.cells ?? []).map(c => {
    const [look, name] = kindOf(c);
    return { pid: c.pid, start: BigInt(c.start ?? 0), end: BigInt(c.end ?? 0), look, name, parts: partsOf(c) };
  });
  // The cursor stays at its address when the next checkpoint of the same job comes.
  cursor = at ? Math.max(0, cells.findLastIndex(c => c.pid === at.pid && c.start <= at.start)) : 0;
  const notes = [...(map.notes ?? [])];
  if (map.checkpoint.kind === "CHECKPOINT_KIND_PRE_DUMP") notes.push("A pre-dump has pages and no mappings, so it is not known of which kind they are.");
  $("map-notes").hidden = notes.length === 0;
  text($("map-notes"), notes.join(" "));
  draw();
  showLegend();
  showReadout();
  showTable();
}

export function colourBy(name) {
  mode = name;
  if (!shown) return;
  draw();
  showLegend();
}

function go(to) {
  cursor = Math.min(Math.max(to, 0), cells.length - 1);
  draw();
  showReadout();
}

export function listen() {
  const canvas = $("map");
  canvas.addEventListener("keydown", event => {
    if (!layout || !cells.length || event.ctrlKey || event.altKey || event.metaKey) return;
    const to = { ArrowLeft: cursor - 1, ArrowRight: cursor + 1, ArrowUp: cursor - layout.columns, ArrowDown: cursor + layout.columns, PageUp: cursor - 10 * layout.columns, PageDown: cursor + 10 * layout.columns, Home: 0, End: cells.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(to);
  });
  const point = event => {
    if (!layout) return;
    const { size } = layout, found = layout.spots.findIndex(([x, y]) => event.offsetX >= x - 1 && event.offsetX <= x + size + 1 && event.offsetY >= y - 1 && event.offsetY <= y + size + 1);
    if (found >= 0 && found !== cursor) go(found);
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("click", point);
  for (const input of document.querySelectorAll("#colours input")) input.addEventListener("change", () => colourBy(input.value));
  new ResizeObserver(() => draw()).observe($("map-box"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { draw(); if (shown) showLegend(); });
}
