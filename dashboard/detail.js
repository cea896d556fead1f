// The history of one line of a table, in a dialog.

import { get } from "./api.js";
import { Chart, el, setText } from "./chart.js";
import { duration, length, visible } from "./format.js";
import { span } from "./state.js";
import { Columns, latencies, statuses, sum } from "./view.js";

const model = [["calls", "Calls", "line-1"], ["failed", "Failed", "status-5"], ["input_tokens", "Input tokens", "model-1"], ["output_tokens", "Output tokens", "model-2"], ["tokens", "Tokens", "model-3"]];

// namesOf are the counters of a line.
function namesOf(table, key) {
  switch (table) {
    case "routes":
      return [`api.${key}.requests`, ...statuses.map((s) => `api.${key}.${s.measure}`), ...latencies.map((m) => `api.${key}.${m}`)];
    case "models":
      return model.map(([m]) => `llm.${key}.${m}`);
  }
  return [key];
}

const kinds = { routes: "Route", users: "User", features: "Feature", models: "Model", errors: "Error", other: "Name" };

export class Detail {
  constructor({ state, closed }) {
    this.dialog = document.getElementById("detail");
    this.title = document.getElementById("detail-title");
    this.kind = this.dialog.querySelector(".kind");
    [this.first, this.second] = this.dialog.querySelectorAll("[data-chart]");
    this.hosts = [this.dialog];
    this.state = state;
    this.dialog.addEventListener("close", () => {
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
    const wanted = Boolean(rest.join("") && Object.hasOwn(kinds, table));
    if (wanted) {
      const row = this.state().row;
      if (row !== this.row) {
        this.clear();
        Object.assign(this, { row, table, key: rest.join(":"), opener });
        const name = { routes: this.key, models: this.key, users: this.key.slice("user.".length, -".requests".length) }[table] ?? this.key;
        setText(this.kind, kinds[table]);
        setText(this.title, visible(name));
        const of = { routes: "Requests", users: "Requests", models: "Calls" }[table] ?? "Count";
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
    const part = await get("series", { ...span(this.state()), name }, signal);
    this.days = this.table === "users" && part.answer.starts.length < 7; // there are no hours
    return [this.days ? await get("series", { range: "30d", step: "day", name }, signal) : part];
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
      const series = statuses.map((s) => bar(`api.${this.key}.${s.measure}`, s.label, s.color)).filter((s) => s.sum);
      if (!series.length) series.push(bar(`api.${this.key}.requests`, "Requests", "line-1"));
      this.chart.draw({ ...frame, series, stacked: true, none });
      this.latency.draw({ ...frame, series: c.latency(`api.${this.key}.`), none: "No latency was measured in this range." });
    } else if (this.table === "models") {
      const of = (wanted) => model.filter(([m]) => wanted.includes(m)).map(([m, label, color]) => bar(`llm.${this.key}.${m}`, label, color)).filter((s) => s.sum);
      const [calls, failed] = ["calls", "failed"].map((m) => c.now(`llm.${this.key}.${m}`));
      const well = calls.map((n, i) => Math.max(n - failed[i], 0));
      this.chart.draw({ ...frame, none, stacked: true, series: [{ key: "calls", label: "Answered", color: "line-1", values: c.shown(well), sum: sum(well) }, ...of(["failed"])] });
      const split = of(["input_tokens", "output_tokens"]);
      this.latency.draw({ ...frame, none: "No tokens in this range.", stacked: true, series: split.length ? split : of(["tokens"]) });
    } else {
      this.chart.draw({ ...frame, none, stacked: true, series: [bar(this.key, kinds[this.table] === "User" ? "Requests" : "Count", "line-1")] });
    }
  }
}
