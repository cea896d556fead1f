// Numbers, times and names, as the viewer writes them.

const whole = new Intl.NumberFormat();
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const percent = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 1 });
const precise = new Intl.NumberFormat(undefined, { style: "percent", maximumSignificantDigits: 2 });
const signed = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 0, signDisplay: "exceptZero" });

export const number = (n) => whole.format(n);
export const compact = (n) => (Math.abs(n) < 10_000 ? whole : short).format(n);
export const share = (x) => (x > 0 && x < 0.01 ? precise : percent).format(x);

// A change in words: null when there is nothing to compare with.
export function change(now, before) {
  if (!(before > 0)) return null;
  const x = now / before - 1;
  return x > 9.995 ? `× ${compact(Math.round(now / before))}` : signed.format(x);
}

const tenths = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });

// The bounds of what is measured, those of store.Row.Quantile.
export const bounds = [5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000]; // ms

// A duration, with the digits that matter, in units that need no translation.
export function length(ms) {
  if (ms >= 999.5) return `${tenths.format(ms / 1000)} s`;
  return `${ms >= 10 ? whole.format(Math.round(ms)) : tenths.format(ms)} ms`;
}
// The same of a quantile: nothing is measured between 0 and the first bound, nor beyond
// the last.
export const fastest = (ms) => ms !== null && ms < bounds[0];
export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (fastest(ms)) return `< ${length(bounds[0])}`;
  return (ms >= 10_000 ? "≥ " : "") + length(ms);
}

// Times are those of the store's zone as its answers write them: a browser may not know
// the zone, or have other rules for it than the server. learn notes what an answer says.
let zone = "";
const offsets = []; // [since, ms that local time is ahead of UTC], by time
export const theZone = () => zone;
export function learn({ zone: name, starts = [], as_of }) {
  zone = name ?? zone;
  for (const text of [...starts, as_of]) {
    const [, sign, hours, minutes] = /([+-])(\d\d):(\d\d)$/.exec(text) ?? [0, "+", 0, 0];
    const since = Date.parse(text), ahead = Number(sign + 1) * (hours * 60 + Number(minutes)) * 60e3;
    if (offsets.length && aheadAt(since) === ahead) continue;
    const i = offsets.findIndex(([other]) => other >= since);
    offsets.splice(i < 0 ? offsets.length : i, 0, [since, ahead]);
  }
}
const aheadAt = (ms) => (offsets.findLast(([since]) => since <= ms) ?? offsets[0] ?? [0, 0])[1];
export const local = (ms) => ms + aheadAt(ms); // what a clock there shows, as if it were one of UTC
export const date = (ms) => new Date(local(ms)).toISOString().slice(0, 10);

const parts = {
  hour: { weekday: "short", day: "numeric", month: "short", hour: "numeric", minute: "2-digit" },
  day: { weekday: "short", day: "numeric", month: "short", year: "numeric" },
  month: { month: "long", year: "numeric" },
  time: { hour: "numeric", minute: "2-digit" },
  second: { hour: "numeric", minute: "2-digit", second: "2-digit" },
  date: { day: "numeric", month: "short" },
  short: { month: "short", year: "numeric" },
};
const formats = Object.fromEntries(Object.entries(parts).map(([how, of]) => [how, new Intl.DateTimeFormat(undefined, { ...of, timeZone: "UTC" })]));
export const time = (ms, how) => formats[how].format(local(ms));
export const span = (from, to) => formats[to - from < 3 * 24 * 3600e3 ? "hour" : "day"].formatRange(local(from), local(to));

// A name with what cannot be seen, or turns the text around it, as escapes.
export function visible(name) {
  return name.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Co}\u{115f}\u{1160}\u{3164}\u{ffa0}\u{2800}]/gu, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
}

// The same interpolation as store.Row.Quantile. count gives the number
// of a measure; null: none was measured.
export function quantile(p, count) {
  const numbers = bounds.map((b) => count(`latency_${b}ms`));
  const total = numbers.reduce((a, b) => a + b, count("latency_inf"));
  if (!total) return null;
  const rank = p * total;
  let below = 0;
  for (const [i, n] of numbers.entries()) {
    if (n > 0 && below + n >= rank) {
      const low = i ? bounds[i - 1] : 0;
      return Math.round((low + ((bounds[i] - low) * (rank - below)) / n) * 10) / 10;
    }
    below += n;
  }
  return bounds.at(-1);
}
