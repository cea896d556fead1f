// What is on screen, as the URL says it: ?range=7d&compare=1&q.routes=novel. Whoever
// gets the address sees the same.

export const ranges = ["today", "24h", "7d", "30d", "90d", "13mo"];
const first = "24h";
const date = /^\d{4}-\d\d-\d\d(T[\d:.]+(Z|[+-]\d\d:\d\d))?$/;
const isTime = (s) => date.test(s) && Number.isFinite(Date.parse(s));

export function read(search) {
  const p = new URLSearchParams(search);
  const state = { range: p.get("range"), from: p.get("from"), to: p.get("to"), compare: p.get("compare") === "1", row: p.get("row") ?? "", q: {}, sort: {}, more: {} };
  if (isTime(state.from) && isTime(state.to)) state.range = "custom";
  else {
    state.from = state.to = null;
    if (!ranges.includes(state.range)) state.range = first;
  }
  for (const [key, value] of p) {
    const [what, table] = key.split(".", 2);
    if (table && Object.hasOwn(state, what) && typeof state[what] === "object" && state[what]) state[what][table] = value.slice(0, 256);
  }
  return state;
}

export function write(state) {
  const p = new URLSearchParams();
  if (state.range === "custom") {
    p.set("from", state.from);
    p.set("to", state.to);
  } else if (state.range !== first) p.set("range", state.range);
  if (state.compare) p.set("compare", "1");
  for (const what of ["q", "sort", "more"]) {
    for (const [table, value] of Object.entries(state[what])) if (value) p.set(`${what}.${table}`, value);
  }
  if (state.row) p.set("row", state.row);
  const search = p.toString();
  return search ? "?" + search : location.pathname;
}

const day = 24 * 3600e3;

// The parameters of the chosen range, for any of the API's answers.
export function span(state) {
  return state.range === "custom" ? { from: state.from, to: state.to } : { range: state.range };
}

// The same with an equal period before it; split finds where it begins among the starts
// of both.
export function twice(state) {
  if (state.range === "custom") {
    const exact = state.from.includes("T");
    const from = Date.parse(state.from), to = Date.parse(state.to) + (exact ? 0 : day);
    const before = new Date(Math.max(from - (to - from), 0)).toISOString();
    // A bucket is one of the range if it ends after the range begins: in the store's zone.
    const after = (end) => (exact ? Date.parse(end) > from : end.slice(0, 16) > `${state.from}T00:00`);
    return { params: { from: exact ? before : before.slice(0, 10), to: state.to }, split: (starts) => starts.findIndex((s, i) => i === starts.length - 1 || after(starts[i + 1])) };
  }
  if (state.range === "13mo") return { params: { range: "13mo" }, split: () => 0 }; // nothing older is kept
  const [, n, unit] = /^(\d+)(.*)$/.exec(state.range === "today" ? "1d" : state.range);
  const params = { range: 2 * n + unit };
  if (unit === "h") return { params, split: half };
  // By their dates: where the clock is changed, a day has more or fewer hours.
  const split = (starts) => {
    const dates = starts.map((s) => s.slice(0, 10));
    return dates.indexOf([...new Set(dates)].at(-n));
  };
  return { params, split };
}

export const half = (starts) => Math.ceil(starts.length / 2);
