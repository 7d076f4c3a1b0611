/* Curves in the console's colours: a plot that follows the width of its box, and a legend of buttons. */
"use strict";

class Curves {
  #box; #options; #plot; #data; #log = false; #area; #values = [];

  /* Each of `series` has label and colour (a variable of console.css); it may have width, dash, faint
     and dots. `format` makes texts of values. */
  constructor(box, { series, height = 280, format = Curves.number, legend = true }) {
    this.#box = box;
    this.#options = { series: series.map((one) => ({ ...one })), height, format };
    this.#data = [[], ...series.map(() => [])];
    this.#area = document.createElement("div");
    box.append(this.#area);
    if (legend) box.after(this.#legend());
    this.#build();
    new ResizeObserver(() => this.#plot.setSize({ width: this.#width(), height })).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#plot.redraw());
  }

  static number(value) {
    return value == null ? "–" : value.toPrecision(4).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
  }

  /* A smoothed copy: an average that forgets older values. Gaps stay gaps. */
  static smooth(values) {
    const known = values.filter((it) => it != null).length;
    const keep = 1 - 1 / Math.min(Math.max(known / 15, 1), 30);
    let sum = 0, weight = 0;
    return values.map((value) => {
      if (value == null) return null;
      sum = keep * sum + value;
      weight = keep * weight + 1;
      return sum / weight;
    });
  }

  draw(data) {
    this.#data = data;
    const xs = this.#plot.data[0], scale = this.#plot.scales.x;
    const zoomed = xs.length > 1 && (scale.min > xs[0] || scale.max < xs.at(-1));
    this.#plot.setData(data, !zoomed);
    if (zoomed) this.#plot.redraw();
    this.#tell(data[0].length - 1);
  }

  setLog(on) {
    this.#log = on;
    this.#build();
  }

  #width() {
    return Math.max(this.#box.clientWidth, 120);
  }

  #build() {
    this.#plot?.destroy();
    const colour = (name) => () => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const { series, height, format } = this.#options;
    const font = "12px system-ui, sans-serif";
    const axis = { stroke: colour("--quiet"), font, grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
    this.#plot = new uPlot({
      width: this.#width(), height,
      scales: { x: { time: false }, y: { distr: this.#log ? 3 : 1 } },
      axes: [{ ...axis, size: 32 }, { ...axis, size: 62, space: 26, values: (_, splits) => splits.map((it) => (it == null ? "" : format(it))) }],
      legend: { show: false },
      cursor: { y: false, points: { size: 7 } },
      series: [{}, ...series.map((one) => ({
        label: one.label, show: one.show ?? true, stroke: colour(one.colour), width: one.width ?? 2,
        dash: one.dash, spanGaps: true, alpha: one.faint ? 0.55 : 1, points: { show: Boolean(one.dots), size: 7, fill: colour(one.colour) },
      }))],
      hooks: { setCursor: [(plot) => this.#tell(plot.cursor.idx ?? this.#data[0].length - 1)] },
    }, this.#data, this.#area);
  }

  #legend() {
    const list = document.createElement("ul");
    list.className = "legend";
    this.#options.series.forEach((one, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(one.show ?? true));
      const value = document.createElement("span");
      value.className = "legend-value";
      button.append(Curves.#swatch(one), one.label, value);
      button.addEventListener("click", () => {
        one.show = !(one.show ?? true);
        button.setAttribute("aria-pressed", String(one.show));
        this.#plot.setSeries(index + 1, { show: one.show });
      });
      this.#values.push(value);
      const item = document.createElement("li");
      item.append(button);
      list.append(item);
    });
    return list;
  }

  static #swatch(one) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg"), line = document.createElementNS(space, "line");
    for (const [key, value] of Object.entries({ width: 30, height: 10, "aria-hidden": "true" })) svg.setAttribute(key, value);
    const drawn = { x1: 1, x2: 29, y1: 5, y2: 5, "stroke-width": one.width ?? 2, "stroke-dasharray": (one.dash ?? []).join(" "), "stroke-opacity": one.faint ? 0.55 : 1 };
    for (const [key, value] of Object.entries(drawn)) line.setAttribute(key, value);
    line.style.stroke = `var(${one.colour})`;
    svg.append(line);
    return svg;
  }

  /* The values at a place, in the legend: the nearest known one before it. */
  #tell(index) {
    this.#values.forEach((span, number) => {
      const values = this.#data[number + 1];
      let at = index;
      while (at > 0 && values[at] == null) at -= 1;
      span.textContent = values[at] == null ? "" : this.#options.format(values[at]);
    });
  }
}
