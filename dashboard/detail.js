// The history of one line of a table, in a dialog.

import { get } from "./api.js";
import { Chart, el, setText } from "./chart.js";
import { duration, length, visible } from "./format.js";
import { span } from "./state.js";
import { Columns, latencies, nameOf, statuses, sum } from "./view.js";

const model = [["calls", "Calls", "line-1"], ["failed", "Failed", "status-5"], ["input_tokens", "Input tokens", "model-1"], ["output_tokens", "Output tokens", "model-2"], ["tokens", "Tokens", "model-3"]];

// namesOf are the counters of a line.
function namesOf(table, key) {
  switch (table) {
    case "routes":
      return ["requests", ...statuses.map((s) => s.measure), ...latencies].map((m) => nameOf("api", key, m));
    case "models":
      return model.map(([m]) => nameOf("llm", key, m));
  }
  return [key];
}

const kinds = { routes: "Route", areas: "Area", users: "User", quotas: "Quota", features: "Feature", models: "Model", errors: "Error", other: "Name" };
const counts = { routes: "Requests", areas: "Requests", users: "Requests", models: "Calls" }; // what is counted of each

export class Detail {
  constructor({ state, closed }) {
    this.dialog = document.getElementById("detail");
    this.title = document.getElementById("detail-title");
    this.kind = this.dialog.querySelector(".kind");
    [this.first, this.second] = this.dialog.querySelectorAll("[data-chart]");
    this.hosts = [this.dialog];
    this.state = state;
    this.dialog.addEventListener("close", () => {
      if (this.dialog.open) return; // for another line, since
      this.clear();
      this.opener?.isConnected && this.opener.focus();
      closed();
    });
    this.dialog.addEventListener("click", (e) => {
      if (e.target === this.dialog) this.dialog.close(); // beside it
    });
  }

  // follow opens or closes the dialog, as the state has it.
  follow(opener) {
    const [table, ...rest] = this.state().row.split(":");
    const wanted = rest.length > 0 && Object.hasOwn(kinds, table);
    if (wanted) {
      const row = this.state().row;
      if (row !== this.row) {
        this.clear();
        Object.assign(this, { row, table, key: rest.join(":"), opener });
        const name = { areas: this.key.slice("api.requests.".length), quotas: this.key.slice("quota.".length), users: this.key.slice("user.".length, -".requests".length) }[table] ?? this.key;
        setText(this.kind, kinds[table]);
        setText(this.title, visible(name) || "(empty)");
        const of = counts[table] ?? "Count";
        this.first.append(el("h3", {}, of));
        this.chart = new Chart(this.first, { title: `${of} of ${visible(name)}` });
        const other = { routes: "Latency", models: "Tokens" }[table];
        if (other) {
          this.second.append(el("h3", {}, other));
          const latency = table === "routes" ? { format: duration, scale: length, log: true } : {};
          this.latency = new Chart(this.second, { title: `${other} of ${visible(name)}`, ...latency });
        }
      }
      if (!this.dialog.open) this.dialog.showModal();
    } else if (this.dialog.open) this.dialog.close();
  }
  clear() {
    this.chart?.remove();
    this.latency?.remove();
    this.first.replaceChildren();
    this.second.replaceChildren();
    this.row = this.chart = this.latency = null;
  }
  get active() {
    return this.dialog.open;
  }

  async load(signal) {
    const name = namesOf(this.table, this.key);
    const month = () => get("series", { range: "30d", step: "day", name }, signal);
    const early = this.days ? month() : null; // as the last time
    early?.catch(() => {}); // it may be wanted no more
    const part = await get("series", { ...span(this.state()), name }, signal);
    this.days = ["users", "quotas"].includes(this.table) && part.answer.starts.length < 7; // there are no hours
    return [this.days ? await (early ?? month()) : part];
  }

  show([{ answer }]) {
    if (!this.chart) return;
    setText(this.kind, answer.series[0]?.label ? `${kinds[this.table]}: ${visible(answer.series[0].label)}` : kinds[this.table]);
    const c = new Columns(answer);
    const frame = { ...c.frame, by: this.days ? "by day, 30 days" : undefined };
    const bar = (name, label, color) => {
      const values = c.now(name);
      return { key: name, label, color, values: c.shown(values), sum: sum(values) };
    };
    const none = "Nothing in this range.";
    if (this.table === "routes") {
      const series = statuses.map((s) => bar(nameOf("api", this.key, s.measure), s.label, s.color)).filter((s) => s.sum);
      const requests = bar(nameOf("api", this.key, "requests"), "Requests", "line-1");
      const rest = c.now(requests.key).map((n, i) => Math.max(n - sum(series.map((s) => s.values[i] ?? 0)), 0)); // counted before there were classes
      if (!series.length) series.push(requests);
      else if (sum(rest)) series.push({ key: "unknown", label: "No class", color: "status-1", values: c.shown(rest), sum: sum(rest) });
      this.chart.draw({ ...frame, series, stacked: true, none });
      this.latency.draw({ ...frame, series: c.latency(nameOf("api", this.key, "")), none: "No latency was measured in this range." });
    } else if (this.table === "models") {
      const of = (wanted) => model.filter(([m]) => wanted.includes(m)).map(([m, label, color]) => bar(nameOf("llm", this.key, m), label, color)).filter((s) => s.sum);
      const [calls, failed] = ["calls", "failed"].map((m) => c.now(nameOf("llm", this.key, m)));
      const well = calls.map((n, i) => Math.max(n - failed[i], 0));
      this.chart.draw({ ...frame, none, stacked: true, series: [{ key: "calls", label: "Answered", color: "line-1", values: c.shown(well), sum: sum(well) }, ...of(["failed"])] });
      const split = of(["input_tokens", "output_tokens"]);
      this.latency.draw({ ...frame, none: "No tokens in this range.", stacked: true, series: split.length ? split : of(["tokens"]) });
    } else {
      this.chart.draw({ ...frame, none, stacked: true, series: [bar(this.key, counts[this.table] ?? "Count", "line-1")] });
    }
  }
}
