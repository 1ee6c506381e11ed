// The time line: for each checkpoint its size, what has changed, the pause, and what it builds on.
import { $, make, text, attribute, keyed, choosing, selected } from "./dom.js";
import { bytes, clock, moment, number, plural, seconds, span } from "./format.js";

export const page = 4096;

// changedOf is the memory that the checkpoint had to store, whole or in part.
export function changedOf(c) {
  const f = c.figures ?? {};
  return Math.max(0, number(f.bytesMemory) - number(f.bytesReferenced) - page * number(f.zeroPages));
}

const tracks = [
  { name: "Size", kind: "size", of: c => number(c.bytes), show: bytes },
  { name: "Changed", kind: "changed", of: changedOf, show: bytes },
  { name: "Pause", kind: "pause", of: c => seconds(c.figures?.pause) * 1000, show: ms => span(ms / 1000) },
];

export const nameOf = c => c.name || c.dir.split("/").pop();

// scaleOf finds where a logarithmic scale begins and ends, and its lines.
function scaleOf(values) {
  const some = values.filter(v => v > 0);
  if (some.length === 0) return { low: 0, high: 1, lines: [] };
  const log = Math.log2;
  const low = Math.floor(log(Math.min(...some)) - 0.5), high = Math.ceil(log(Math.max(...some)));
  const step = Math.max(1, Math.ceil((high - low) / 3)), lines = [];
  for (let at = low; at <= high; at += step) lines.push(at);
  return { low, high, lines, height: v => v > 0 ? Math.max(0.03, (log(v) - low) / (high - low)) : 0, value: at => 2 ** at };
}

const css = (name) => parseFloat(getComputedStyle($("timeline-frame")).getPropertyValue(name));

// showAxis draws the names of the tracks and their lines.
function showAxis(scales, width) {
  const heights = [css("--size"), css("--changed-track"), css("--pause")], gap = css("--gap");
  const axis = [], grid = [];
  let top = 2;
  tracks.forEach((track, i) => {
    top += gap;
    const box = make("div");
    box.style.top = `${top}px`;
    box.style.height = `${heights[i]}px`;
    const name = make("b", {}, track.name);
    name.style.top = "-23px";
    box.append(name);
    const base = make("i", { class: "base" });
    base.style.top = `${top - 2 + heights[i]}px`;
    grid.push(base);
    for (const at of scales[i].lines) {
      const part = (at - scales[i].low) / (scales[i].high - scales[i].low), label = make("span", {}, track.show(scales[i].value(at)).replace(/\.0+ /, " ")), line = make("i");
      label.style.bottom = `${part * 100}%`;
      line.style.top = `${top - 2 + heights[i] * (1 - part)}px`;
      box.append(label);
      if (part > 0) grid.push(line);
    }
    axis.push(box);
    top += heights[i];
  });
  $("axis").replaceChildren(...axis);
  $("grid").style.width = `${width}px`;
  $("grid").replaceChildren(...grid);
  return top + 13;
}

// showLinks draws what builds on what: a line to a neighbour, an arc over others.
function showLinks(list, at, width, column, y) {
  const svg = $("links"), paths = [];
  svg.style.top = `${y - 20}px`;
  svg.setAttribute("width", width);
  svg.setAttribute("height", 40);
  list.forEach((c, i) => {
    const from = at.get(c.parent);
    if (!c.parent || from === i) return;
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const x1 = from === undefined ? 0 : (from + 0.5) * column, x2 = (i + 0.5) * column;
    path.setAttribute("d", from === undefined || from === i - 1 ? `M${from === undefined ? x2 - column / 2 : x1} 20H${x2}` : `M${x1} 20C${x1 + column / 3} 6 ${x2 - column / 3} 6 ${x2} 20`);
    if (from === undefined) path.setAttribute("stroke-dasharray", "2 2");
    paths.push(path);
  });
  svg.replaceChildren(...paths);
}

export function describe(c, values = tracks.map(t => t.of(c))) {
  const kind = c.kind === "CHECKPOINT_KIND_PRE_DUMP" ? "pre-dump" : "full";
  return `${nameOf(c)}, ${moment(new Date(c.created))}, size ${bytes(values[0])}, changed ${bytes(values[1])}, pause ${span(values[2] / 1000)}, ${kind}, ${c.parent ? "builds on another" : "begins a chain"}`;
}

// showTimeline shows checkpoints, the oldest first.
export function showTimeline(list, chosen, follow) {
  const scroll = $("timeline-scroll"), box = $("timeline"), before = box.querySelector('[aria-selected="true"]');
  const anchor = before && { key: before.dataset.key, at: before.offsetLeft - scroll.scrollLeft };
  const values = list.map(c => tracks.map(t => t.of(c))), scales = tracks.map((t, i) => scaleOf(values.map(v => v[i])));
  const column = css("--column"), at = new Map(list.map((c, i) => [c.id, i]));
  let index = 0, labelled = -9;
  keyed(box, list, c => c.dir, () => {
    const point = make("div", { role: "option", class: "point", "aria-selected": "false" });
    for (const t of tracks) point.append(make("div", { class: `track ${t.kind}` }, make("i")));
    point.append(make("span", { class: "node" }, make("span", { class: "mark" })), make("span", { class: "time" }, make("span")));
    return point;
  }, (point, c) => {
    const i = index++;
    attribute(point, "id", `point-${c.id}`);
    attribute(point, "aria-label", describe(c, values[i]));
    attribute(point, "aria-setsize", list.length);
    attribute(point, "aria-posinset", i + 1);
    attribute(point, "title", `${nameOf(c)} · ${moment(new Date(c.created))}\nsize ${bytes(values[i][0])} · changed ${bytes(values[i][1])} · pause ${span(values[i][2] / 1000)}`);
    tracks.forEach((t, k) => {
      const height = values[i][k] > 0 ? `${(scales[k].height(values[i][k]) * 100).toFixed(2)}%` : "0";
      const bar = point.children[k].firstChild;
      if (bar.style.height !== height) bar.style.height = height;
    });
    attribute(point.querySelector(".mark"), "class", `mark${c.parent ? "" : " first"}${c.kind === "CHECKPOINT_KIND_PRE_DUMP" ? " pre" : ""}`);
    const show = i - labelled >= 3 && (list.length - i >= 3 || list.length <= 3);
    if (show) labelled = i;
    text(point.querySelector(".time span"), show ? clock(new Date(c.created)) : "");
  });
  selected(box, chosen);
  const width = Math.max(list.length * column, scroll.clientWidth);
  const y = showAxis(scales, width);
  showLinks(list, at, list.length * column, column, y);
  const now = box.querySelector('[aria-selected="true"]');
  if (follow) scroll.scrollLeft = scroll.scrollWidth;
  else if (now && anchor && anchor.key === now.dataset.key) scroll.scrollLeft = now.offsetLeft - anchor.at;
  else if (now) reveal(scroll, now);
}

// reveal scrolls as little as is needed to see an element.
function reveal(scroll, element) {
  const left = element.offsetLeft, right = left + element.offsetWidth;
  if (left < scroll.scrollLeft) scroll.scrollLeft = left - 8;
  else if (right > scroll.scrollLeft + scroll.clientWidth) scroll.scrollLeft = right - scroll.clientWidth + 8;
}

export const choosingPoints = choose => choosing($("timeline"), true, choose);

let factsBefore = ""; // what showFacts showed last

// showFacts tells of one checkpoint.
export function showFacts(c, list, select) {
  const f = c?.figures ?? {}, parent = c && list.find(o => o.id === c.parent);
  text($("detail-title"), c ? `Checkpoint ${nameOf(c)}` : "Checkpoint");
  if (!c) {
    $("figures").replaceChildren();
    $("facts").replaceChildren();
    factsBefore = "";
    return;
  }
  const first = !c.parent, rounds = f.rounds ?? [];
  let builds = first ? "nothing: it begins a chain" : c.parent.slice(0, 8);
  if (parent) {
    builds = make("button", { type: "button", class: "link" }, nameOf(parent));
    builds.addEventListener("click", () => select(parent.dir));
  }
  const figures = [
    ["Size", bytes(c.bytes)], [first ? "Changed (all is new)" : "Changed", bytes(changedOf(c))], ["Pause", span(seconds(f.pause))],
    ["Memory", bytes(f.bytesMemory)],
  ];
  const facts = [
    ["Made", moment(new Date(c.created))], ["Kind", c.kind === "CHECKPOINT_KIND_PRE_DUMP" ? "pre-dump, memory only" : "full, can be restored"],
    ["Builds on", builds], ["Chain", plural(number(c.chainLength), "checkpoint")],
    ["Images of CRIU’s", `${bytes(f.bytesFiles)} besides`], ["Took", span(seconds(f.took))], ["Copies", rounds.length ? `${rounds.length}, ${bytes(rounds.reduce((n, r) => n + number(r.bytes), 0))} in all` : "none"],
    ["Processes", `${plural(number(c.processes), "process").replace("processs", "processes")}: ${c.command ?? ""} (${c.rootPid ?? ""})`],
    ["Stored as", `${c.compression}, ${plural(number(c.streams), "stream")}, ${c.engine}`],
    ["Folder", c.dir, "wide"], ["Id", c.id, "wide"],
  ];
  const row = ([name, value, kind = ""]) => make("div", { class: kind }, make("dt", {}, name), make("dd", typeof value === "string" ? { title: value } : {}, value));
  const now = JSON.stringify([c.dir, figures, facts.map(([name, value]) => [name, value.textContent ?? value])]);
  if (now === factsBefore) return; // a link in it may have the focus
  factsBefore = now;
  $("figures").replaceChildren(...figures.map(row));
  $("facts").replaceChildren(...facts.map(row));
}
