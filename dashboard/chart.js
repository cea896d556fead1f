// Charts, by uPlot: bars that stand on each other, or lines. Below each is a legend of
// buttons, which hide a series and show its number under the crosshair.

import { compact, local, time, visible } from "./format.js";

const { uPlot } = globalThis;
const gap = 8; // pixels that a drag must span to zoom

// el makes an element. What is in it is text, or elements: never markup.
export function el(tag, attributes = {}, ...inside) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) e.setAttribute(name, value);
  }
  e.append(...inside);
  return e;
}

// setText changes e only when there is something to change: what reads the page aloud
// would otherwise begin anew.
export function setText(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

let colors = new Map(); // of theme.css, as a canvas takes them
const probe = el("span", { hidden: "", class: "probe" });
export function color(name) {
  if (!colors.has(name)) {
    if (!probe.isConnected) document.body.append(probe);
    probe.style.color = `var(--${name})`;
    colors.set(name, getComputedStyle(probe).color);
  }
  return colors.get(name);
}
const charts = new Set();
export function themeChanged() {
  colors = new Map();
  for (const c of charts) c.redraw();
}

export class Chart {
  // format writes a value, scale one of the axis, which is logarithmic with log; zoom, when given, is told the first and last bucket dragged over.
  constructor(host, { title, format = compact, scale = format, log, zoom }) {
    Object.assign(this, { format, scale, log, zoom, title, hidden: new Set(), plot: null, shape: "" });
    this.box = el("div", { class: "plot", tabindex: "0", role: "group", "aria-label": title });
    this.when = el("span", { class: "when" });
    this.buttons = el("span", { class: "series" });
    this.legend = el("div", { class: "legend" }, this.buttons, this.when);
    this.note = el("p", { class: "none", hidden: "" });
    this.by = el("small");
    host.querySelector("h2, h3").append(this.by);
    host.append(this.box, this.note, this.legend);
    this.box.addEventListener("keydown", (e) => this.key(e));
    this.box.addEventListener("blur", () => this.point(null));
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.box);
    charts.add(this);
  }

  remove() {
    this.observer.disconnect();
    this.plot?.destroy();
    charts.delete(this);
  }

  // draw shows series: {key, label, color, values, sum, line, dash}, values being null where
  // there is none; in a stack, one with line or dash stands by itself. starts are those of
  // the buckets, in ms, end is where the last one ends, and running the one that runs.
  draw({ starts, end, step, running, by, series, stacked, none }) {
    Object.assign(this, { starts, end, step, running, series, stacked });
    const empty = !series.some((s) => s.values.some((v) => v));
    this.box.hidden = this.legend.hidden = empty;
    this.note.hidden = !empty;
    setText(this.note, none);
    setText(this.by, empty ? "" : (by ?? `by ${step}`));
    if (empty) {
      this.plot?.destroy();
      this.plot = null;
      this.shape = "";
      return;
    }
    this.redraw();
  }

  redraw() {
    if (!this.series || this.box.hidden) return;
    // A total of before beside a part of now would keep the scale.
    const part = this.stacked && this.series.some((s) => isBar(s) && this.hidden.has(s.key));
    const shown = this.series.filter((s) => !this.hidden.has(s.key) && !(part && s.dash));
    this.surface = this.isSurface();
    const shape = JSON.stringify([this.stacked, this.surface, shown.map((s) => [s.key, s.color, s.dash, isLone(s)]), document.documentElement.dataset.theme]);
    const data = this.data(shown);
    this.label();
    if (shape === this.shape) this.plot.setData(data);
    else {
      this.plot?.destroy();
      this.shape = shape;
      this.plot = new uPlot(this.options(shown), data, this.box);
    }
    this.point(this.index(this.plot));
  }

  // data is in the order in which it is drawn: of a stack the highest first, so that the
  // lower ones stand before it.
  data(shown) {
    const xs = this.starts.map((ms) => ms / 1000);
    if (!this.stacked) return [xs, ...shown.map((s) => s.values)];
    const sum = new Array(xs.length).fill(0);
    const bars = shown.filter(isBar).map((s) => s.values.map((v, i) => (v === null ? null : (sum[i] += v))));
    const steps = shown.filter((s) => !isBar(s)).map((s) => extended(s.values));
    // A step ends where the next begins, the last one with the range.
    return [[...xs, this.end / 1000], ...bars.reverse().map((b) => (this.surface ? extended(b) : [...b, null])), ...steps];
  }

  // isSurface tells whether bars would be so thin that their edges mix.
  isSurface() {
    return this.stacked && this.size().width / this.starts.length < 5;
  }

  options(shown) {
    const bars = this.surface ? uPlot.paths.stepped({ align: 1 }) : uPlot.paths.bars({ size: [0.82, Infinity], align: 1, gap: 1 });
    const line = (s) => ({ stroke: () => color(s.color), width: 1.75, dash: s.dash, points: { show: isLone(s), size: 6 }, spanGaps: false });
    const series = this.stacked
      ? [
          ...shown.filter(isBar).reverse().map((s) => ({ paths: bars, fill: () => color(s.color), width: 0, points: { show: false } })),
          ...shown.filter((s) => !isBar(s)).map((s) => ({ ...line(s), paths: uPlot.paths.stepped({ align: 1 }) })),
        ]
      : shown.map(line);
    const axis = { stroke: () => color("faint"), font: "12px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: () => color("line"), width: 1 } };
    return {
      ...this.size(),
      padding: [8, 8, 0, 0],
      legend: { show: false },
      tzDate: (s) => uPlot.tzDate(new Date(local(s * 1000)), "UTC"),
      cursor: {
        y: false,
        points: { show: !this.stacked, size: 7 },
        drag: { x: Boolean(this.zoom), y: false, setScale: false },
        dataIdx: (u, i, closest, x) => Math.min(closest > 0 && u.data[0][closest] > x ? closest - 1 : closest, this.starts.length - 1),
      },
      scales: {
        x: { time: true, range: () => [this.starts[0] / 1000, this.end / 1000] },
        y: this.log
          ? { distr: 3, range: (u, low, high) => decades(low || 1, high || 10) }
          : { range: (u, low, high) => [0, high > 0 ? uPlot.rangeNum(0, high, 0.1, true)[1] : 1] },
      },
      axes: [
        {
          ...axis,
          grid: { show: false },
          size: 30,
          gap: 8,
          space: 70,
          ...(this.step === "day" ? { incrs: days } : {}),
          values: (u, splits, i, space, every) => splits.map((s) => this.tick(s * 1000, every)),
        },
        {
          ...axis,
          ...(this.log ? { splits: (u) => powers(u.scales.y.min, u.scales.y.max), filter: (u, splits) => splits } : { space: 36, incrs: counts }),
          size: (u, values) => 14 + 7 * Math.max(2, ...(values ?? []).map((v) => v.length)),
          values: (u, splits) => splits.map((v) => this.scale(v)),
        },
      ],
      series: [{}, ...series],
      hooks: {
        setCursor: [(u) => this.point(this.index(u))],
        setSelect: [(u) => this.selected(u)],
      },
    };
  }

  // index is that of the bucket under the crosshair.
  index(u) {
    return u.cursor.idx === null || u.cursor.idx === undefined ? null : Math.min(u.cursor.idx, this.starts.length - 1);
  }

  tick(ms, seconds) {
    if (ms > this.end - 0.03 * (this.end - this.starts[0])) return ""; // it would be cut off
    if (seconds >= 28 * 24 * 3600) return time(ms, "short");
    if (seconds >= 24 * 3600) return time(ms, "date");
    const midnight = time(ms, "time") === time(this.midnight(ms), "time");
    return midnight && this.end - this.starts[0] > 26 * 3600e3 ? time(ms, "date") : time(ms, "time");
  }
  midnight(ms) {
    const day = 24 * 3600e3;
    return ms - (((local(ms) % day) + day) % day);
  }

  size() {
    return { width: Math.max(this.box.clientWidth, 120), height: Math.max(this.box.clientHeight, 120) };
  }
  resize() {
    const { width, height } = this.size();
    if (!this.plot || (this.plot.width === width && this.plot.height === height)) return;
    if (this.surface !== this.isSurface()) this.redraw();
    else this.plot.setSize({ width, height });
  }

  selected(u) {
    const { left, width } = u.select;
    if (!this.zoom || width < gap) return;
    const at = (x) => {
      const value = u.posToVal(x, "x") * 1000;
      const i = this.starts.findLastIndex((s) => s <= value);
      return Math.max(i, 0);
    };
    const [from, to] = [at(left), at(left + width)];
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.zoom(this.starts[from], this.starts[to + 1] ?? this.end);
  }

  label() {
    const known = new Set(this.series.map((s) => s.key));
    for (const b of [...this.buttons.children]) if (!known.has(b.dataset.series)) b.remove();
    this.series.forEach((s, i) => {
      let b = [...this.buttons.children].find((b) => b.dataset.series === s.key);
      if (!b) {
        b = el("button", { type: "button", "data-series": s.key }, el("i", { class: s.dash ? "dash" : "" }), el("span", {}, visible(s.label)), " ", el("b"));
        b.addEventListener("click", () => {
          this.hidden.has(s.key) ? this.hidden.delete(s.key) : this.hidden.add(s.key);
          this.redraw();
        });
      }
      b.style.setProperty("--c", `var(--${s.color})`);
      b.setAttribute("aria-pressed", String(!this.hidden.has(s.key)));
      b.title = `${this.hidden.has(s.key) ? "Show" : "Hide"} ${visible(s.label)}`;
      if (this.buttons.children[i] !== b) this.buttons.insertBefore(b, this.buttons.children[i] ?? null);
    });
  }

  // point shows the numbers of a bucket in the legend, or without one, of the range.
  point(i) {
    if (i === this.pointed && i === null && this.pointedAt === this.series) return;
    this.pointed = i;
    this.pointedAt = this.series;
    let when = "";
    if (i !== null && this.starts[i] !== undefined) {
      when = time(this.starts[i], this.step) + (i === this.running ? ", so far" : "");
      const bars = this.series.filter((s) => isBar(s) && !this.hidden.has(s.key));
      if (this.stacked && bars.length > 1) when += `: ${this.format(bars.reduce((sum, s) => sum + (s.values[i] ?? 0), 0))}`;
    }
    setText(this.when, when);
    this.series.forEach((s, at) => {
      const v = i === null ? s.sum : s.values[i];
      setText(this.buttons.children[at].lastChild, v === undefined ? "" : v === null ? "–" : this.format(v));
    });
  }

  // key moves the crosshair, for who has no mouse, and for who does not see it.
  key(e) {
    const last = this.starts.length - 1;
    const i = this.plot && this.index(this.plot);
    const to = { ArrowLeft: Math.max((i ?? last + 1) - 1, 0), ArrowRight: Math.min((i ?? -1) + 1, last), Home: 0, End: last }[e.key];
    if (to === undefined || !this.plot) return;
    e.preventDefault();
    this.legend.setAttribute("aria-live", "polite");
    const width = (this.starts[to + 1] ?? this.end) - this.starts[to];
    this.plot.setCursor({ left: this.plot.valToPos((this.starts[to] + (this.stacked ? width / 2 : 0)) / 1000, "x"), top: this.plot.over.clientHeight / 2 });
  }
}

// extended repeats the last value once, where there is none.
function extended(values) {
  const last = values.findLastIndex((v) => v !== null);
  return [...values, null].map((v, i) => (i === last + 1 ? values[last] : v));
}

const isBar = (s) => !s.dash && !s.line;
const isLone = (s) => s.values.filter((v) => v !== null).length < 2; // a line would not be seen
const days = [1, 2, 7, 14, 30, 61, 91, 182, 365].map((d) => d * 24 * 3600);
const counts = Array.from({ length: 17 }, (_, i) => [1, 2, 5].map((n) => n * 10 ** i)).flat();
// decades are the powers of ten around low and high, two at least.
function decades(low, high) {
  const from = Math.floor(Math.log10(low));
  return [10 ** from, 10 ** Math.max(Math.ceil(Math.log10(high)), from + 1)];
}
const powers = (low, high) => Array.from({ length: Math.round(Math.log10(high / low)) + 1 }, (_, i) => low * 10 ** i);

const svg = "http://www.w3.org/2000/svg";

// spark draws values as a line in an svg; where they are null it has a gap.
export function spark(e, values) {
  const of = values.join();
  if (e.dataset.of === of) return;
  e.dataset.of = of;
  const top = Math.max(...values, 0), width = 100, height = 24;
  let line = "", area = "", from = null;
  const x = (i) => ((i * width) / Math.max(values.length - 1, 1)).toFixed(1);
  values.forEach((v, i) => {
    if (v === null) {
      from = null;
      return;
    }
    const y = (height - 1.5 - (top > 0 ? (v / top) * (height - 3) : 0)).toFixed(1);
    line += `${from === null ? "M" : "L"}${x(i)} ${y}`;
    from ??= i;
    if (i === values.length - 1 || values[i + 1] === null) area += `${line.slice(line.lastIndexOf("M"))}L${x(i)} ${height}L${x(from)} ${height}Z`;
  });
  e.setAttribute("viewBox", `0 0 ${width} ${height}`);
  e.setAttribute("preserveAspectRatio", "none");
  while (e.children.length < 2) e.append(document.createElementNS(svg, "path"));
  e.children[0].setAttribute("d", top > 0 ? area : "");
  e.children[1].setAttribute("d", line);
}
