// The cards and charts above the tables. Each part loads what it shows by itself, so
// that one slow answer keeps no other from being seen.

import { get } from "./api.js";
import { Chart, setText, spark } from "./chart.js";
import { bounds, change, duration, fastest, length, number, quantile, share } from "./format.js";
import { half, span, twice } from "./state.js";

const day = 24 * 3600e3;
export const total = "api.requests.total";
const daily = "user.active.daily", monthly = "user.active.monthly", registrations = "user.registrations";
export const dropped = "usagekit.counts.dropped";
export const statuses = [1, 2, 3, 4, 5].map((n) => ({ measure: `status_${n}xx`, label: `${n}xx`, color: `status-${n}` }));
// nameOf is the counter of a subject, which may be none.
export const nameOf = (group, subject, measure) => (subject ? `${group}.${subject}.${measure}` : `${group}.${measure}`);
export const latencies = [...bounds.map((b) => `latency_${b}ms`), "latency_inf"];
export const quantiles = [[0.5, "p50", "line-1"], [0.95, "p95", "line-2"], [0.99, "p99", "line-3"]];
const palette = 6; // colors for models

// Counting began at a time, in ms: before that nothing is known. null: that is not known.
export const counting = { began: null };

// Columns are a series answer, split into the chosen range and what comes before it.
export class Columns {
  constructor(answer, split = () => 0) {
    const starts = answer.starts.map((s) => Date.parse(s));
    this.split = Math.max(split(answer.starts), 0);
    this.step = answer.step;
    this.starts = starts.slice(this.split);
    this.end = Date.parse(answer.to);
    const known = starts.findIndex((_, i) => (starts[i + 1] ?? this.end) > counting.began);
    this.first = Math.max(this.split - this.starts.length, 0); // of the time before
    this.known = known < 0 ? starts.length : known; // the first bucket in which something could be counted
    const now = Date.parse(answer.as_of);
    this.begun = this.starts.filter((s) => s <= now).length; // what is to come has no numbers
    const last = this.begun - 1;
    const length = (this.starts[last + 1] ?? this.end) - this.starts[last];
    this.part = last < 0 ? 0 : Math.min((now - this.starts[last]) / length, 1); // of the running bucket
    this.series = answer.series;
    this.of = new Map(answer.series.map((s) => [s.name, s.n]));
  }
  none() {
    return new Array(this.starts.length).fill(0);
  }
  all(name) {
    return this.of.get(name) ?? new Array(this.split + this.starts.length).fill(0);
  }
  now(name) {
    return this.all(name).slice(this.split);
  }
  before(name) {
    const values = this.all(name).slice(Math.max(this.split - this.starts.length, 0), this.split);
    return this.split ? this.starts.map((_, i) => values[i] ?? 0) : null;
  }
  // shown is values without those of buckets that have not begun, or ended before
  // counting began.
  shown(values) {
    return values.map((v, i) => (i < this.begun && i + this.split >= this.known ? v : null));
  }
  // outline is values of the time before, without what is not known of it.
  outline(values) {
    return values.map((v, i) => (i + this.first >= this.known ? v : null));
  }
  // whole tells whether all of the time before is known.
  whole(values) {
    if (!this.split) return false;
    if (counting.began !== null) return this.known <= this.first;
    const began = values.findIndex((v) => v > 0);
    return began >= 0 && began <= values.length / 2;
  }
  // trend is values without what is to come, and without the bucket that runs: it would
  // look like a fall.
  trend(values) {
    const all = this.shown(values).slice(0, this.begun);
    const whole = this.begun > 3 && this.part < 1 ? all.slice(0, -1) : all;
    return whole.some((v) => v) ? whole : all; // in the first hour it is all
  }
  // frame is what a chart needs to know of it.
  get frame() {
    return { starts: this.starts, end: this.end, step: this.step, running: this.part < 1 ? this.begun - 1 : -1 };
  }
  // steady is values of a quantile without a running bucket that has hardly begun: it is
  // of few requests. Where there is no other, it is all that is known.
  steady(values) {
    const last = this.begun - 1;
    const few = this.part < 0.25 && values.slice(0, last).some((v) => v !== null);
    return few ? values.map((v, i) => (i === last ? null : v)) : values;
  }
  // latency is the lines of quantiles of what begins with prefix.
  latency(prefix) {
    const of = new Map(latencies.map((m) => [m, this.now(prefix + m)]));
    return quantiles.map(([p, label, color]) => ({
      key: label,
      label,
      color,
      values: this.steady(this.starts.map((_, i) => quantile(p, (m) => of.get(m)[i]))),
      sum: quantile(p, (m) => sum(of.get(m))),
    }));
  }
  // soFar is what the period before had come to at the same point of it.
  soFar(values) {
    return values ? values.reduce((sum, v, i) => sum + (i < this.begun - 1 ? v : i === this.begun - 1 ? v * this.part : 0), 0) : 0;
  }
}

export const numbersOf = (totals) => new Map(totals.answer.counts.map((c) => [c.name, c.n]));

export const sum = (values) => values.reduce((a, b) => a + b, 0);
export const add = (lists, zero) => lists.reduce((a, b) => a.map((v, i) => v + b[i]), zero);

class Card {
  constructor(id) {
    const box = document.querySelector(`[data-card=${id}]`);
    [this.value, this.change] = box.querySelectorAll("p");
    this.spark = box.querySelector("svg");
  }
  show(raw, text, values, [said, tone, title]) {
    this.value.dataset.value = raw ?? "";
    setText(this.value, text);
    this.value.classList.toggle("long", text.length > 8);
    this.value.classList.toggle("longer", text.length > 12);
    setText(this.change, said);
    this.change.className = tone ?? "";
    this.change.title = title ?? "";
    spark(this.spark, values);
  }
}

const words = { today: "yesterday", "24h": "24 h before", "7d": "7 days before", "30d": "30 days before", "90d": "90 days before", custom: "the time before" };

// against says what a range is compared with: "" where not all of that is known.
const against = (range, columns, before) => (columns.whole(before) ? words[range] : "");

// said is a change in words, and its tone: where less is better, one of two colors, if it
// is more than noise. write, when given, writes what it was in place of the change.
function said(now, before, than, { less, write } = {}) {
  const text = than && (write ? before >= 0 && `was ${write(before)},` : change(now, before) && `${change(now, before)} vs`);
  if (!text) return [""];
  const tone = !less || Math.abs(now / before - 1) < 0.1 ? "" : now > before ? "worse" : "better";
  return [`${text} ${than}`, tone, "Compared up to the same point of that time"];
}

// parts are what app.js loads and shows: hosts, the elements that want it.
export function parts({ state, zoom }) {
  const host = (id) => document.querySelector(`[data-chart=${id}]`);
  const card = (id) => document.querySelector(`[data-card=${id}]`);
  const requests = new Chart(host("requests"), { title: "Requests by status class", zoom });
  const active = new Chart(host("active"), { title: "Active users a day" });
  active.hidden.add("registrations"); // until somebody asks: on some days there are far more
  const latency = new Chart(host("latency"), { title: "Latency: half of the requests took at most p50, 95 of 100 p95, 99 of 100 p99", format: duration, scale: length, log: true, zoom });
  const tokens = new Chart(host("tokens"), { title: "LLM tokens by model", zoom });
  const cards = Object.fromEntries(["requests", "today", "active_day", "active_month", "error_rate", "p95", "tokens"].map((id) => [id, new Card(id)]));

  const name = [total, ...[...statuses.map((s) => s.measure), ...latencies].map((m) => `api.requests.${m}`)];
  const overview = (signal) => get("series", { ...twice(state()).params, name }, signal);

  return [
    {
      hosts: [card("requests"), card("error_rate"), card("p95"), host("requests"), host("latency")],
      load: async (signal) => [await overview(signal)],
      show([{ answer }]) {
        const { range, compare } = state();
        const c = new Columns(answer, twice(state()).split);
        const now = c.now(total), before = c.before(total);
        const count = sum(now), than = against(range, c, before);
        cards.requests.show(count, number(count), c.trend(now), said(count, c.soFar(before), than));

        // Of those that have a status: in older numbers not all requests do.
        const of = (values) => statuses.map((s) => values.call(c, `api.requests.${s.measure}`));
        const known = add(of(c.now), c.none()), failed = of(c.now)[4];
        const rate = sum(known) ? sum(failed) / sum(known) : 0;
        const knownBefore = c.split ? of(c.before).map((v) => c.soFar(v)) : [0];
        cards.error_rate.show(rate, share(rate), c.trend(failed.map((n, i) => (known[i] ? n / known[i] : null))), said(rate, knownBefore.at(-1) / sum(knownBefore), than, { less: true, write: share }));

        const lines = c.latency("api.requests."), p95 = lines[1];
        const slow = c.split ? new Map(latencies.map((m) => [m, c.before(`api.requests.${m}`)])) : null;
        const p95Before = slow && quantile(0.95, (m) => c.soFar(slow.get(m)));
        cards.p95.show(p95.sum, duration(p95.sum), c.trend(p95.values), said(p95.sum, p95Before, fastest(p95.sum) && fastest(p95Before) ? "" : than, { less: true }));

        const classes = statuses.map((s) => ({ key: s.measure, label: s.label, color: s.color, values: c.shown(c.now(`api.requests.${s.measure}`)) }));
        const rest = now.map((n, i) => Math.max(n - known[i], 0)); // counted before there were classes
        if (sum(rest)) classes.push({ key: "unknown", label: "No class", color: "status-1", values: c.shown(rest) });
        for (const s of classes) s.sum = sum(s.values.filter((v) => v !== null));
        const shown = classes.filter((s) => s.sum || (s.label === "2xx" && !sum(rest)));
        if (compare && before && sum(c.outline(before))) shown.push(dashed(c.outline(before), Math.round(c.soFar(before))));
        requests.draw({ ...c.frame, series: shown, stacked: true, none: "No requests in this range." });
        if (compare && slow) {
          const values = c.starts.map((_, i) => quantile(0.95, (m) => slow.get(m)[i]));
          lines.push({ ...dashed(values, p95Before), label: "p95 before" });
        }
        latency.draw({ ...c.frame, series: lines, none: "No latency was measured in this range." });
      },
    },
    {
      hosts: [card("today")],
      // Where today is the range, its numbers are those of the range's cards.
      load: async (signal) => [await (state().range === "today" ? overview(signal) : get("series", { range: "2d", name: total }, signal))],
      show([{ answer }]) {
        const c = new Columns(answer, twice({ range: "today" }).split);
        const n = sum(c.now(total)), before = c.before(total);
        cards.today.show(n, number(n), c.trend(c.now(total)), said(n, c.soFar(before), against("today", c, before)));
      },
    },
    {
      hosts: [card("active_day"), card("active_month"), host("active")],
      async load(signal) {
        const { range } = state();
        const days = (params) => get("series", { ...params, name: [daily, registrations], step: "day" }, signal);
        const chosen = { "30d": { range: "60d" }, "90d": { range: "180d" }, "13mo": { range }, custom: span(state()) }[range];
        // What is chosen has today, too, unless somebody chose other days.
        return Promise.all([
          days(chosen ?? { range: "30d" }),
          get("series", { range: "13mo", name: monthly, step: "month" }, signal),
          ...(range === "custom" ? [days({ range: "30d" })] : []),
        ]);
      },
      show([byDay, byMonth, last30 = byDay]) {
        const { range, compare } = state();
        const now = Date.parse(last30.answer.as_of); // the last month's days to come are there, too
        const d = new Columns(last30.answer, (starts) => starts.filter((s) => Date.parse(s) <= now).length - 30), m = new Columns(byMonth.answer);
        const days = d.now(daily), months = m.now(monthly);
        const users = days[d.begun - 1] ?? 0, month = months[m.begun - 1] ?? 0;
        const yesterday = days[d.begun - 2], last = months[m.begun - 2];
        cards.active_day.show(users, number(users), d.trend(days), [yesterday ? `${number(yesterday)} yesterday` : "", "", "In all of yesterday"]);
        const whole = months.slice(0, m.begun - 2).some((n) => n); // or counting began in that month
        cards.active_month.show(month, number(month), m.shown(months).slice(0, m.begun), [last && whole ? `${number(last)} last month` : "", "", "In all of last month"]);

        const double = range === "30d" || range === "90d";
        const c = new Columns(byDay.answer, double ? half : undefined);
        const series = [{ key: "active", label: "Active", color: "line-1", values: c.shown(c.now(daily)) }];
        const joined = c.now(registrations);
        if (sum(joined)) series.push({ key: "registrations", label: "Registrations", color: "line-3", line: true, values: c.shown(joined), sum: sum(joined) });
        const before = c.before(daily);
        if (compare && double && before && sum(before)) series.push(dashed(c.outline(before)));
        const by = ["today", "24h", "7d"].includes(range) ? "by day, 30 days" : undefined;
        active.draw({ ...c.frame, by, series, stacked: true, none: "No active users in this range." });
      },
    },
    {
      hosts: [card("tokens"), host("tokens")],
      load: async (signal) => [await get("series", { ...twice(state()).params, prefix: "llm.", measure: "tokens" }, signal)],
      show([{ answer }]) {
        const { range, compare } = state();
        const c = new Columns(answer, twice(state()).split);
        const models = answer.series.map((s) => ({ key: s.name, label: s.name.slice("llm.".length, -".tokens".length) || "(empty)", values: c.now(s.name) }));
        for (const s of models) s.sum = sum(s.values);
        models.sort((a, b) => b.sum - a.sum);
        const all = add(models.map((s) => s.values), c.none());
        const before = add(answer.series.map((s) => c.before(s.name) ?? c.none()), c.none());
        const count = sum(all);
        cards.tokens.show(count, number(count), c.trend(all), said(count, c.soFar(before), against(range, c, before)));
        const shown = models.filter((s) => s.sum).slice(0, palette);
        const rest = models.slice(palette).filter((s) => s.sum);
        if (rest.length) shown.push({ key: "rest", label: `${rest.length} more`, values: add(rest.map((s) => s.values), c.none()), sum: sum(rest.map((s) => s.sum)) });
        const names = shown.map((s) => s.key).sort(); // a model keeps its color while others overtake it
        const series = shown.map((s) => ({ ...s, color: s.key === "rest" ? "status-1" : `model-${names.indexOf(s.key) + 1}`, values: c.shown(s.values) }));
        if (compare && c.split && sum(before)) series.push(dashed(c.outline(before), Math.round(c.soFar(before))));
        tokens.draw({ ...c.frame, series, stacked: true, none: "No tokens in this range." });
      },
    },
  ];
}

// dashed is the time before: sum is what it had come to at the same point.
const dashed = (values, sum) => ({ key: "before", label: "Before", color: "before", dash: [4, 4], values, sum });
