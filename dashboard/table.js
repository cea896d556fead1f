// Tables: of the largest first, with search, order, a trend for each line, and more.

import { get } from "./api.js";
import { el, setText, spark } from "./chart.js";
import { duration, number, share, time, visible } from "./format.js";
import { span } from "./state.js";
import { Columns, latencies, nameOf, statuses } from "./view.js";

const steps = [10, 100, 1000]; // lines
const quiet = 250; // ms after a keystroke

const areas = "api.requests.";
const sums = new Set(["total", ...statuses.map((s) => s.measure), ...latencies].map((m) => areas + m));
const counted = [{ key: "n", label: "Count", format: number }];
const plain = (prefix) => ({
  of: "totals",
  params: () => ({ prefix }),
  columns: counted,
  line: (s) => ({ key: s.name, name: s.name.slice(prefix.length), n: s.total }),
});

// What each table selects, and how it reads: of is the part of the API that has its
// lines (a plain one's come with their trends), measure what they are chosen by.
const specs = {
  routes: {
    of: "rows",
    head: "Route",
    columns: [
      { key: "requests", label: "Requests", format: number },
      { key: "refused", label: "4xx", title: "Answers of 400 to 499: what was asked wrongly", format: share },
      { key: "errors", label: "Errors", title: "Answers of 500 and above", format: share, bad: 0.01 },
      { key: "p95", label: "p95", title: "95 of 100 requests took at most this", format: duration },
    ],
    picks: { refused: "status_4xx", errors: "status_5xx" }, // an order by these has those alone that have any
    params: (order) => ({ prefix: "api.", except: "api.requests.", measure: specs.routes.picks[order] ?? "requests" }),
    line: (r) => {
      const n = r.counts.requests ?? 0, part = (measure) => (n ? (r.counts[measure] ?? 0) / n : 0);
      return { key: r.subject, name: r.subject, requests: n, refused: part("status_4xx"), errors: part("status_5xx"), p95: r.p95_ms };
    },
    trend: (key, order) => nameOf("api", key, specs.routes.picks[order] ?? "requests"),
    none: ["No requests in this range. Wrap the application's handler:", "middleware.New(usage, middleware.Config{})(mux)"],
  },
  areas: {
    of: "totals",
    head: "Area",
    columns: [{ key: "n", label: "Requests", format: number }],
    // What all routes have together is named alike.
    params: () => ({ prefix: areas }),
    but: sums,
    exported: { except: [...sums] },
    line: (s) => ({ key: s.name, name: s.name.slice(areas.length), n: s.total }),
    none: ["No areas in this range. Tell the middleware which a request is for:", "middleware.Config{Area: area}"],
  },
  users: {
    of: "totals",
    head: "User",
    columns: [{ key: "n", label: "Requests", format: number }],
    params: () => ({ prefix: "user.", measure: "requests" }),
    line: (s) => {
      const id = s.name.slice("user.".length, -".requests".length);
      return { key: s.name, name: s.label ?? id, id: s.label ? id : "", n: s.total };
    },
    find: "Search by id",
    days: true, // there are no hours: a short range has the trend of 30 days
    none: ["No users in this range. Tell the middleware who asks:", "middleware.Config{User: userID}"],
  },
  quotas: {
    ...plain("quota."),
    head: "Quota",
    days: true, // those of a day have no hours
    exported: { of: "history", step: "day" }, // they have no totals
    none: ["No quotas in this range. Limit what somebody may do:", "quota.New(usage, quota.Config{…})"],
  },
  features: { ...plain("feature."), head: "Feature", none: ["No features in this range. Count one where it is used:", 'usage.Inc("feature.outline.generated")'] },
  models: {
    of: "rows",
    head: "Model",
    columns: [
      { key: "calls", label: "Calls", format: number },
      { key: "failed", label: "Failed", format: number },
      { key: "tokens", label: "Tokens", format: number },
    ],
    params: () => ({ prefix: "llm." }),
    trends: { prefix: "llm.", measure: "tokens" },
    line: (r) => ({ key: r.subject, name: r.subject, calls: r.counts.calls ?? 0, failed: r.counts.failed ?? 0, tokens: r.counts.tokens ?? 0 }),
    trend: (key) => nameOf("llm", key, "tokens"),
    none: ["No LLM calls in this range. Count one:", 'llm.New(usage).Add(llm.Call{Model: "gpt-5", Input: 812, Output: 98})'],
  },
  errors: { ...plain("error."), head: "Error", none: ["No errors in this range. Count one where it happens:", 'usage.Inc("error.llm.timeout")'] },
  other: {
    ...plain(""),
    head: "Name",
    params: () => ({ except: ["api.", "user.", "feature.", "llm.", "error.", "quota."] }),
    none: ["No other names in this range. Any dotted name will do:", 'usage.Add("mail.sent", 3)'],
  },
};

// kinds are what was used, or not: ask finds out whether there ever was one, of what is no
// other's; how says how to have some.
const ever = (params, more) => ({ params: { limit: 1, ...params }, ...more });
export const kinds = Object.fromEntries(
  Object.entries({
    routes: ever({ prefix: "api.", measure: "requests" }),
    areas: ever({ prefix: areas, limit: sums.size + 2 }, { but: new Set([...sums, areas + "today"]) }),
    users: ever({ prefix: "user.", measure: "requests" }),
    quotas: ever({ prefix: "quota.", range: "30d", step: "day" }, { of: "series" }), // they have no totals
    features: ever({ prefix: "feature." }),
    models: ever({ prefix: "llm." }),
    errors: ever({ prefix: "error." }),
    other: ever({ except: ["api.", "user.", "feature.", "llm.", "error.", "quota."] }),
  }).map(([kind, ask]) => [kind, { ask, how: [specs[kind].none[0].replace(/^.*?\. /, ""), specs[kind].none[1]] }]),
);

// setName sets text that may break behind a slash.
function setName(e, name) {
  if (e.textContent !== name) e.replaceChildren(...name.split(/(?<=\/)/).flatMap((part, i) => (i ? [el("wbr"), part] : [part])));
}

export class Table {
  // set changes the state of the table: what is searched, the order, how many lines;
  // open shows a line's own history.
  constructor(host, { state, set, open }) {
    const id = host.dataset.table;
    Object.assign(this, { host, id, spec: specs[id], state, set, open, rows: new Map(), lines: [] });
    const title = host.querySelector("h2").textContent;
    this.by = el("small");
    host.querySelector("h2").append(this.by);
    this.search = el("input", { type: "search", placeholder: this.spec.find ?? "Search", "aria-label": `${this.spec.find ?? "Search"}: ${title}`, autocomplete: "off", spellcheck: "false", maxlength: "256" });
    this.search.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.set("q", this.search.value.trim()), quiet);
    });
    this.csv = el("a", { "data-export": "csv", download: "", "aria-label": `${title} as CSV` }, "CSV");
    this.json = el("a", { "data-export": "json", download: "", "aria-label": `${title} as JSON` }, "JSON");
    this.heads = ["name", ...this.spec.columns.map((c) => c.key)].map((key) => {
      const c = this.spec.columns.find((c) => c.key === key) ?? { label: this.spec.head };
      const button = el("button", { type: "button", "data-sort": key, title: c.title }, c.label);
      button.addEventListener("click", () => this.sortBy(key));
      return el("th", { scope: "col", class: key === "name" ? null : "number" }, button);
    });
    this.heads.splice(1, 0, el("th", { scope: "col", class: "trend" }, "Trend"));
    this.body = el("tbody");
    this.caption = el("caption", { class: "unseen" }, title);
    this.table = el("table", { class: this.spec.columns.length > 1 ? `many of-${this.spec.columns.length}` : null }, this.caption, el("thead", {}, el("tr", {}, ...this.heads)), this.body);
    this.body.addEventListener("click", (e) => {
      const row = e.target.closest("tr[data-name]");
      if (row && !getSelection().toString()) this.open(this.id, row.dataset.name, row.querySelector("button"));
    });
    this.hint = el("p", { class: "none", hidden: "" });
    this.more = el("button", { type: "button", class: "more", hidden: "" });
    this.more.addEventListener("click", () => this.set("more", String(this.next())));
    host.append(el("div", { class: "tools" }, this.search, this.csv, this.json), el("div", { class: "scroll" }, this.table), this.hint, this.more);
  }

  limit() {
    const n = Number(this.state().more[this.id]);
    return steps.includes(n) ? n : steps[0];
  }
  next() {
    return steps[steps.indexOf(this.limit()) + 1];
  }

  // order is the column, and whether the largest come first.
  order() {
    const chosen = this.state().sort[this.id] ?? "";
    const key = chosen.replace(/^-/, "");
    if (key !== "name" && !this.spec.columns.some((c) => c.key === key)) return { key: this.spec.columns.at(this.id === "models" ? -1 : 0).key, down: true };
    return { key, down: (key === "name") === chosen.startsWith("-") };
  }
  sortBy(key) {
    const now = this.order();
    const down = now.key === key ? !now.down : key !== "name";
    this.set("sort", (down === (key !== "name") ? "" : "-") + key);
  }

  params() {
    const state = this.state();
    return { ...span(state), ...this.spec.params(this.order().key), contains: state.q[this.id] };
  }

  // wide tells whether what is searched may be found in what all of them have in common,
  // which is not shown: then more are needed to have those that are.
  wide() {
    const { prefix = "", measure = "" } = this.spec.params(this.order().key);
    const q = (this.state().q[this.id] ?? "").toLowerCase();
    return q !== "" && `${prefix}.${measure}`.toLowerCase().includes(q);
  }

  async load(signal) {
    const params = { ...this.params(), limit: Math.min((this.wide() ? steps.at(-1) : this.limit()) + (this.spec.but?.size ?? 0), steps.at(-1)) };
    const month = (name) => get("series", { range: "30d", step: "day", name }, signal);
    const trends = get("series", { ...params, ...this.spec.trends }, signal);
    const days = this.names ? month(this.names) : null;
    days?.catch(() => {}); // it may be wanted no more
    if (this.spec.of === "totals") {
      const { answer } = await trends;
      if (this.spec.days && answer.starts.length < 7 && answer.series.length) {
        const name = answer.series.slice(0, steps[0]).map((s) => s.name);
        // Mostly they are those of the last time, and so asked for already.
        return [await trends, await (name.join() === this.names?.join() ? days : month((this.names = name)))];
      }
      this.names = null;
      return [await trends];
    }
    return Promise.all([get("rows", { ...params, limit: params.limit + 1 }, signal), trends]);
  }

  show(parts) {
    const state = this.state(), order = this.order(), q = state.q[this.id] ?? "";
    if (document.activeElement !== this.search) this.search.value = q;
    for (const [link, format] of [[this.csv, "csv"], [this.json, "json"]]) {
      const { of, ...rest } = { of: this.spec.of, ...this.params(), ...this.spec.exported };
      const p = new URLSearchParams({ of, format, ...(format === "csv" ? { bom: 1 } : {}) });
      for (const [key, value] of Object.entries(rest)) for (const v of [value].flat()) if (v) p.append(key, v);
      link.href = `api/export?${p}`;
    }
    const columns = new Columns(parts.at(-1).answer);
    const trends = new Map(columns.series.map((s) => [s.name, columns.trend(s.n)]));
    const rows = this.spec.of === "totals" ? parts[0].answer.series.filter((s) => !this.spec.but?.has(s.name)) : parts[0].answer.rows;
    // The API looks into whole names: what is not shown of them is no find.
    const all = rows.map(this.spec.line).filter((l) => !q || `${l.name} ${l.id ?? ""}`.toLowerCase().includes(q.toLowerCase()));
    const more = all.length > this.limit() || Boolean(parts[0].answer.more);
    const found = all.slice(0, this.limit());
    const first = this.spec.columns[0].key;
    this.largest = Math.max(...found.map((l) => l[first]), 1);
    const names = new Intl.Collator(undefined, { numeric: true });
    this.lines = found.sort((a, b) => (order.key === "name" ? names.compare(a.name, b.name) : (a[order.key] ?? -1) - (b[order.key] ?? -1)) * (order.down ? -1 : 1));
    for (const th of this.heads) {
      const key = th.firstElementChild?.dataset.sort;
      if (key === order.key) th.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
    const picked = this.spec.picks?.[order.key] ? this.spec.columns.find((c) => c.key === order.key).label : ""; // none may be a good sign
    this.table.hidden = !this.lines.length && !picked;
    this.hint.hidden = Boolean(this.lines.length);
    if (!this.lines.length) this.hint.replaceChildren(...this.none(q, picked));
    const days = this.spec.days && Date.parse(parts[0].answer.starts[0]) < Date.parse(parts[0].answer.from);
    const bySize = order.down && (order.key === this.spec.columns[0].key || picked || this.id === "models");
    setText(this.by, days ? `whole days, from ${time(Date.parse(parts[0].answer.starts[0]), "date")}` : more && !bySize ? `of the ${number(this.limit())} largest` : "");
    this.search.hidden = !this.lines.length && !q;
    this.csv.hidden = this.json.hidden = !this.lines.length;
    this.more.hidden = !more || !this.next();
    setText(this.more, more ? `Show more than the ${number(this.limit())} largest` : "");
    this.fill(trends, order);
  }

  // none says why there is nothing, or what to do about it.
  none(q, picked) {
    if (picked) return [`No ${picked === "4xx" ? picked : picked.toLowerCase()} in this range${q ? `, of what contains “${visible(q)}”` : ""}.`];
    if (q) return [`Nothing that contains “${visible(q)}” in this range${this.spec.find ? ": ids are searched, not names" : ""}.`];
    return [this.spec.none[0], " ", el("code", {}, this.spec.none[1])];
  }

  // fill keeps the lines that stay: the focus stays, too, and there is nothing to collect.
  fill(trends, order) {
    const wanted = new Set(this.lines.map((l) => l.key));
    for (const [key, row] of this.rows) {
      if (!wanted.has(key)) {
        row.remove();
        this.rows.delete(key);
      }
    }
    this.lines.forEach((l, i) => {
      let row = this.rows.get(l.key);
      if (!row) {
        const button = el("button", { type: "button", class: "name", "aria-haspopup": "dialog" }, el("bdi"));
        const cells = this.spec.columns.map((c) => el("td", { "data-col": c.key, class: "number" }));
        row = el("tr", {}, el("th", { scope: "row" }, button, el("small"), el("span", { class: "bar" })), el("td", { class: "trend" }), ...cells);
        row.dataset.name = l.key;
        const trend = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        trend.setAttribute("class", "spark");
        trend.setAttribute("aria-hidden", "true");
        row.children[1].append(trend);
        this.rows.set(l.key, row);
      }
      const [head, trend, ...cells] = row.children;
      setName(head.firstChild.firstChild, visible(l.name) || "(empty)");
      setText(head.children[1], l.id ? visible(l.id) : "");
      head.children[2].style.setProperty("--share", `${(100 * l[this.spec.columns[0].key]) / this.largest}%`);
      spark(trend.firstChild, trends.get(this.spec.trend?.(l.key, order.key) ?? l.key) ?? []);
      this.spec.columns.forEach((c, at) => {
        const value = l[c.key];
        cells[at].dataset.value = value ?? "";
        cells[at].classList.toggle("bad", value >= (c.bad ?? Infinity));
        setText(cells[at], c.format(value));
      });
      if (this.body.children[i] !== row) this.body.insertBefore(row, this.body.children[i] ?? null);
    });
  }
}
