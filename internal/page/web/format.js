// Numbers and times for people.

export const number = value => Number(value ?? 0);

export function bytes(value) {
  let n = number(value), unit = 0;
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  while (n >= 1024 && unit < units.length - 1) { n /= 1024; unit++; }
  if (n >= 999.5 && unit < units.length - 1) { n /= 1024; unit++; }
  return `${unit === 0 || n >= 100 ? Math.round(n) : n >= 10 ? n.toFixed(1) : n.toFixed(2)} ${units[unit]}`;
}

// Durations come as "0.031816s".
export const seconds = text => text ? parseFloat(text) : 0;

export function span(s) {
  if (s >= 172800) return `${Math.round(s / 86400)} d`;
  if (s >= 7200) return `${Math.round(s / 3600)} h`;
  if (s >= 120) return `${Math.round(s / 60)} min`;
  if (s >= 10) return `${Math.round(s)} s`;
  if (s >= 1) return `${s.toFixed(1)} s`;
  const ms = s * 1000;
  if (ms >= 1) return `${ms >= 100 ? Math.round(ms) : ms.toFixed(1)} ms`;
  return ms === 0 ? "0 ms" : `${Math.round(ms * 1000)} µs`;
}

// How long ago or until then, in whole steps, so that it does not flicker.
export function rough(s) {
  s = Math.max(0, s);
  if (s < 60) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 129600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

export const percent = (part, whole) => {
  if (!whole || !part) return "0 %";
  const p = 100 * part / whole;
  return p >= 99.95 ? (part === whole ? "100 %" : "> 99.9 %") : p >= 10 ? `${Math.round(p)} %` : p >= 0.1 ? `${p.toFixed(1)} %` : "< 0.1 %";
};

const clockFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const dayFormat = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric" });
export const clock = date => clockFormat.format(date);
export const day = date => dayFormat.format(date);
export const moment = date => date.toDateString() === new Date().toDateString() ? clock(date) : `${day(date)}, ${clock(date)}`;

export const plural = (n, word) => `${n.toLocaleString()} ${word}${n === 1 ? "" : "s"}`;

export const hex = value => "0x" + BigInt(value ?? 0).toString(16);
