// The page: what it shows is in the URL, what is on screen is loaded, and loaded again
// while somebody looks.

import { get, Refused } from "./api.js";
import { el, setText, themeChanged } from "./chart.js";
import { Detail } from "./detail.js";
import { date, number, span as interval, theZone, time } from "./format.js";
import { ranges, read, twice, write } from "./state.js";
import { kinds, Table } from "./table.js";
import { counting, dropped, parts, sum, total } from "./view.js";

const every = 5_000; // ms between refreshes
const share = 20; // a part that takes long comes again after so many times what it took
const late = 60_000; // ms that counts may be on their way before it is said
const body = document.body;
const $ = (selector) => document.querySelector(selector);

let state = read(location.search);
let live = true, refreshes = 0, timer, controller, round = Promise.resolve();
let health = null, freshest = Infinity;

const getState = () => state;
const detail = new Detail({ state: getState, closed: () => state.row && change({ row: "" }, true) });
const tables = [...document.querySelectorAll("[data-table]")].map((host) => new Table(host, {
  state: getState,
  set: (what, value) => change({ [what]: { ...state[what], [host.dataset.table]: value } }, what === "q"),
  open: (table, key, opener) => change({ row: `${table}:${key}` }, false, opener),
}));
const zoom = (from, to) => change({ range: "custom", from: new Date(from).toISOString(), to: new Date(to).toISOString() });

// sections are what loads and shows by itself. seen: the hosts that are on screen;
// parts: what it shows, of the range that shown says; key: the range that was tried last;
// due: when to load it again; asks: how often something else was asked of it, and
// shownAs: which of that it shows.
const sections = [
  ...parts({ state: getState, zoom }),
  ...tables.map((t) => ({ hosts: [t.host], load: (signal) => t.load(signal), show: (p) => t.show(p) })),
  { hosts: detail.hosts, load: (signal) => detail.load(signal), show: (p) => detail.show(p), get hidden() { return !detail.active; } },
].map((s) => Object.assign(s, { seen: new Set(), parts: null, shown: "", key: "", due: 0, asks: 0, shownAs: -1, problem: null }));

const observer = new IntersectionObserver((entries) => {
  let missing = false;
  for (const e of entries) {
    for (const s of sections.filter((s) => s.hosts.includes(e.target))) {
      e.isIntersecting ? s.seen.add(e.target) : s.seen.delete(e.target);
      missing ||= wanted(s) && s.key !== keyOf();
    }
  }
  if (missing) refresh();
}, { rootMargin: "200px" });
for (const s of sections) for (const h of s.hosts) observer.observe(h);

const wanted = (s) => (s.hosts[0] === detail.dialog ? detail.active : s.seen.size > 0);
const keyOf = () => JSON.stringify([state.range, state.from, state.to]);

// change sets some of the state, and shows it. Typing leaves no trail in the history.
function change(some, replace, opener) {
  const before = state;
  state = { ...state, ...some };
  const address = write(state);
  if (address !== write(before)) history[replace ? "replaceState" : "pushState"](null, "", address);
  follow(before, opener);
}
addEventListener("popstate", () => {
  const before = state;
  state = read(location.search);
  if (state.range !== "custom") $("#custom").hidden = true;
  follow(before);
});

function follow(before, opener) {
  controls();
  detail.follow(opener);
  const ranged = before.range !== state.range || before.from !== state.from || before.to !== state.to;
  if (ranged) controller?.abort();
  for (const s of sections) {
    const t = tables.find((t) => t.host === s.hosts[0]);
    const moved = t && ["q", "sort", "more"].some((w) => before[w][t.id] !== state[w][t.id]);
    if (ranged || moved || (s.hosts[0] === detail.dialog && before.row !== state.row)) {
      s.due = 0;
      s.asks++;
    }
    if (ranged && !wanted(s)) s.parts = null; // of another range, when it comes on screen
    if (ranged) busy(s, wanted(s));
    else if (before.compare !== state.compare && s.parts && s.shown === keyOf()) show(s);
  }
  refresh();
}

// refresh loads what is on screen and due. One follows the other: a browser that is
// slower than its interval falls behind, and piles nothing up.
function refresh(force) {
  clearTimeout(timer);
  round = round.then(() => reload(force)).catch((err) => console.error(err));
  return round;
}

async function reload(force) {
  if (document.hidden) return; // nobody looks
  controller = new AbortController();
  const { signal } = controller, key = keyOf(), began = performance.now();
  const due = sections.filter((s) => wanted(s) && (force || s.key !== key || s.due <= began));
  await Promise.all([...due.map((s) => loadOne(s, key, signal)), loadHealth(signal), loadUsed(signal), loadBegan(signal)]);
  if (signal.aborted) return; // the next round is waiting
  controller = null;
  body.dataset.refreshes = ++refreshes;
  plan();
  said();
}

async function loadOne(s, key, signal) {
  const { asks } = s;
  if (s.key !== key) busy(s, true);
  try {
    const loaded = await s.load(signal);
    if (asks !== s.asks) return; // something else is asked by now, and loaded next
    const took = Math.max(...loaded.map((p) => p.took));
    const same = s.parts && s.key === key && s.shownAs === asks && !s.problem && s.parts.length === loaded.length && loaded.every((p, i) => p.answer === s.parts[i].answer);
    Object.assign(s, { parts: loaded, shown: key, shownAs: asks, key, problem: null, due: performance.now() + Math.max(every, share * took) - every / 2 });
    if (!same) show(s);
  } catch (err) {
    if (signal.aborted || asks !== s.asks) return;
    if (!(err instanceof Refused)) console.error(err);
    s.problem = err instanceof Refused ? err : new Refused("Something is wrong with this page. Reload it; the browser's console has the error.", -1);
    if (s.shown !== key) s.parts = null; // of another range
    Object.assign(s, { key, due: performance.now() + every / 2 });
  }
  busy(s, false);
}

function show(s) {
  s.show(s.parts);
}

function busy(s, is) {
  for (const h of s.hosts) {
    h.setAttribute("aria-busy", String(is));
    h.classList.toggle("loaded", Boolean(s.parts));
    let p = h.querySelector(":scope > .problem");
    if (s.problem && !is && !h.dataset.card) {
      if (!p) h.append((p = el("p", { class: "problem" })));
      setText(p, s.problem.message);
    } else p?.remove();
  }
}

async function loadHealth(signal) {
  try {
    health = await get("health", {}, signal);
  } catch (err) {
    if (!signal.aborted) health = null;
  }
}

// loadUsed finds out which kinds of counters there ever were, until there were some of
// each: what was never used does not stand there empty.
const used = new Map(); // kind → whether
let totals = null, lost = 0;
async function loadUsed(signal) {
  try {
    const asked = Object.entries(kinds).filter(([kind]) => !used.get(kind));
    let found;
    [totals, ...found] = await Promise.all([get("totals", { name: dropped }, signal), ...asked.map(([, { ask }]) => get(ask.of ?? "totals", ask.params, signal))]);
    lost = sum(totals.answer.counts.map((c) => c.n));
    asked.forEach(([kind, { ask }], i) => used.set(kind, (found[i].answer.counts ?? found[i].answer.series).some((c) => (c.n > 0 || c.total > 0) && !ask.but?.has(c.name))));
    stand();
  } catch {
    // It is asked again.
  }
}

// stand shows the sections of what was used, and names the others.
function stand() {
  for (const e of document.querySelectorAll("[data-of]")) e.hidden = used.get(e.dataset.of) === false;
  const lists = [...document.querySelectorAll(".list:not([hidden])")];
  for (const e of document.querySelectorAll(".alone")) e.classList.remove("alone");
  if (lists.length % 2) lists.at(-1).classList.add("alone");
  for (const [chart, beside] of [["requests", "active"], ["active", "requests"], ["latency", "tokens"], ["tokens", "latency"]]) {
    $(`[data-chart=${chart}]`).classList.toggle("alone", $(`[data-chart=${beside}]`).hidden);
  }
  const unused = Object.keys(kinds).filter((kind) => used.get(kind) === false);
  $("#unused").hidden = !unused.length;
  const now = unused.join();
  if ($("#unused ul").dataset.of === now) return;
  $("#unused ul").dataset.of = now;
  const name = (kind) => $(`[data-table=${kind}] h2`).firstChild.textContent;
  setText($("#unused summary span"), unused.map(name).join(", "));
  $("#unused ul").replaceChildren(...unused.map((kind) => el("li", {}, el("b", {}, name(kind)), " ", ...kinds[kind].how.flatMap((part, i) => (i ? [el("code", {}, part)] : [part, " "])))));
}
const nothing = () => used.size > 0 && ["routes", "features", "models", "errors"].every((kind) => used.get(kind) === false);

// loadBegan finds out since when there are counts, to the hour where hours may be shown.
const recent = 16 * 24 * 3600e3;
async function loadBegan(signal) {
  if (counting.began !== null) return;
  try {
    const first = async (params) => (await get("history", { name: total, ...params }, signal)).answer.counts[0]?.start;
    const day = await first({ step: "day" });
    if (!day) return;
    const on = day.slice(0, 10);
    const hour = Date.now() - Date.parse(day) < recent ? await first({ step: "hour", from: on, to: on }).catch(() => "") : "";
    counting.began = Date.parse(hour || day);
    for (const s of sections) if (s.parts) show(s);
  } catch {
    // It is asked again.
  }
}

function plan() {
  clearTimeout(timer);
  if (live && !document.hidden) timer = setTimeout(refresh, every);
}
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else if (live || sections.some((s) => wanted(s) && s.key !== keyOf())) refresh();
});
document.addEventListener("usagekit:refresh", () => refresh(true)); // for who measures it

// said shows how the numbers are: how old, how complete, and what is wrong.
function said() {
  const on = sections.filter(wanted);
  const answers = on.flatMap((s) => s.parts ?? []);
  const problems = on.filter((s) => s.problem);
  if (!answers.length && !problems.length && !used.size) return;
  freshest = Math.min(...answers.map((p) => p.at), answers.length ? Infinity : (totals?.at ?? Infinity));
  const behind = answers.filter((p) => p.answer.complete_through && Date.parse(p.answer.as_of) - Date.parse(p.answer.complete_through) > late);
  const never = answers.length > 0 && answers.every((p) => !p.answer.complete_through);
  const stale = answers.filter((p) => p.answer.stale && Date.now() - p.at > 2 * every); // less is nothing to speak of
  const of = (those) => time(Math.min(...those.map((p) => Date.parse(p.answer.as_of))), "second");
  const failed = problems.length > 0 && problems.length === on.length;

  // The database in one banner, whatever comes of it; all else in one of its own.
  const { reasons = [], database = [] } = health?.answer ?? {};
  const others = reasons.filter((r) => !database.includes(r));
  const does = stale.some((p) => !p.answer.slow) || database.length ? "does not answer" : "takes long to answer";
  banner("error", failed && problems[0].problem.message + (answers.length ? ` These are the numbers of ${of(answers)}.` : ""));
  banner("stale", !failed && stale.length && `The database ${does}: these are the numbers of ${of(stale)}. Counting goes on.`);
  const told = failed || stale.length > 0;
  const needs = told ? others : reasons;
  banner("trouble", needs.length && `Needs attention: ${needs.join("; ")}.`);
  const through = Math.min(...behind.map((p) => Date.parse(p.answer.complete_through)));
  const coming = behind.length && `Counts are on their way: what came after ${time(through, "second")} is not all here yet.`;
  banner("incomplete", !told && !database.length && (never ? "Counts are on their way: none is here yet." : coming));
  banner("dropped", lost > 0 && `${number(lost)} counts were dropped, of all time, at least: they came in batches or files that could not be read. The application's log named each when it was found.`);
  const empty = nothing();
  $("#empty").hidden = !empty;
  body.dataset.state = failed ? "error" : empty ? "empty" : "ready";
  controls();
  age();
}

function banner(kind, text) {
  let b = $(`.banner[data-kind=${kind}]`);
  if (!text) return b?.remove();
  if (!b) $("#banners").append((b = el("p", { class: "banner", "data-kind": kind })));
  setText(b, text);
}

function age() {
  const s = Math.round((Date.now() - freshest) / 1000);
  const text = !Number.isFinite(s) ? "Waiting for numbers" : s < 3 ? "Up to date" : s < 120 ? `As of ${number(s)} s ago` : `As of ${time(freshest, "hour")}`;
  setText($("[data-fresh]"), text);
}
setInterval(() => document.hidden || age(), 1000);

// controls shows the state in what sets it.
function controls() {
  for (const b of document.querySelectorAll("[data-range]")) b.setAttribute("aria-pressed", String(b.dataset.range === state.range));
  const overview = sections[0].parts?.[0].answer;
  if (overview && sections[0].key === keyOf()) {
    const first = overview.starts[Math.max(twice(state).split(overview.starts), 0)];
    setText($("[data-span]"), interval(Date.parse(first), Math.min(Date.parse(overview.to) - 1, Date.parse(overview.as_of))));
    const since = counting.began, shown = Date.parse(state.compare ? overview.starts[0] : first);
    setText($("[data-began]"), since > shown ? `Counting began ${time(since, Date.now() - since < 3 * 24 * 3600e3 ? "hour" : "day")}` : "");
  } else for (const e of ["[data-span]", "[data-began]"]) setText($(e), "");
  setText($("[data-zone]"), theZone() ? `Times in ${theZone()}` : "");
  $("[name=compare]").checked = state.compare;
  $("[name=compare]").disabled = state.range === "13mo";
  if (state.range === "custom") {
    $("#custom").hidden = false;
    const exact = state.from.includes("T") || state.to.includes("T");
    $("[name=from]").value = exact ? date(Date.parse(state.from)) : state.from;
    $("[name=to]").value = exact ? date(Date.parse(state.to) - 1) : state.to; // it ends before that
  }
  $("[data-range=custom]").setAttribute("aria-expanded", String(!$("#custom").hidden));
  $("[data-action=live]").setAttribute("aria-pressed", String(live));
  setText($("[data-action=live] span + span"), live ? "Live" : "Paused");
  setText($("[data-action=theme]"), `Theme: ${document.documentElement.dataset.theme ?? "auto"}`);
}

for (const b of document.querySelectorAll("[data-range]")) {
  b.addEventListener("click", () => {
    if (ranges.includes(b.dataset.range)) {
      $("#custom").hidden = true;
      change({ range: b.dataset.range, from: null, to: null });
      return;
    }
    $("#custom").hidden = !$("#custom").hidden;
    controls();
    if (!$("#custom").hidden) {
      const today = (sections[0].parts?.[0].answer.as_of ?? new Date().toISOString()).slice(0, 10); // of the store's zone
      $("[name=to]").value ||= today;
      $("[name=from]").value ||= new Date(Date.parse(today) - 13 * 24 * 3600e3).toISOString().slice(0, 10);
      $("[name=from]").focus();
    }
  });
}
$("#custom").addEventListener("submit", (e) => {
  e.preventDefault();
  let [from, to] = [$("[name=from]").value, $("[name=to]").value];
  if (from > to) [from, to] = [to, from];
  change({ range: "custom", from, to });
});
$("[name=compare]").addEventListener("change", (e) => change({ compare: e.target.checked }));
$("[data-action=live]").addEventListener("click", () => {
  live = !live;
  controls();
  live ? refresh() : clearTimeout(timer);
});

// The switch goes from what the system prefers to the other theme, back, and to auto.
const dark = matchMedia("(prefers-color-scheme: dark)");
$("[data-action=theme]").addEventListener("click", () => {
  const [preferred, other] = dark.matches ? ["dark", "light"] : ["light", "dark"];
  const next = { [other]: preferred, [preferred]: undefined }[document.documentElement.dataset.theme ?? ""];
  theme(document.documentElement.dataset.theme ? next : other);
  try {
    const { theme } = document.documentElement.dataset;
    theme ? localStorage.setItem("usagekit-theme", theme) : localStorage.removeItem("usagekit-theme");
  } catch {
    // It holds until the page is left.
  }
});
function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  themeChanged();
  controls();
}
dark.addEventListener("change", themeChanged);

// Paper is white, canvas and all.
let chosen;
addEventListener("beforeprint", () => {
  chosen = document.documentElement.dataset.theme;
  theme("light");
});
addEventListener("afterprint", () => theme(chosen));

controls();
detail.follow(); // what is on screen is loaded once the observer has seen it
