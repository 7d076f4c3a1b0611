/* Draws layers by modules as a heat map, the same as a table, and bars. Knows no adapter. */
"use strict";

const Drawing = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const STEPS = 10;  // classes heat-0 to heat-9 of adapters.css

  function svg(name, attributes = {}, text = "") {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  }

  function html(name, attributes = {}, text = "") {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  }

  /** A number with three digits that mean something. */
  function short(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 100000)) return value.toExponential(1);
    if (size >= 99.95) return Math.round(value).toLocaleString("en");
    return value.toFixed(size >= 9.995 ? 1 : size >= 0.0995 || size === 0 ? 2 : 3);
  }

  /** As its table and its cells show it: similarities all have two digits. */
  function shown(figure, value) {
    return figure.top === 1 && value !== null ? value.toFixed(2) : short(value);
  }

  /** Columns, rows and cells of linears that each have a `layer` and a `module`. */
  function arranged(linears) {
    const layers = [...new Set(linears.map((it) => it.layer))];
    layers.sort((one, other) => (one ?? Infinity) - (other ?? Infinity));
    const modules = [...new Set(linears.map((it) => it.module))];
    const ends = modules.map((module) => module.split(".").at(-1));
    const unique = new Set(ends).size === ends.length;
    const names = new Map(modules.map((module, place) => [module, unique ? ends[place] : module]));
    const cells = new Map(linears.map((it) => [`${it.layer} ${it.module}`, it]));
    return { layers, modules, names, at: (layer, module) => cells.get(`${layer} ${module}`) };
  }

  function layerName(layer) {
    return layer === null ? "other" : String(layer);
  }

  function cellWidth(count, room) {
    const least = count <= 26 ? 42 : count <= 40 ? 24 : 15;
    return Math.max(least, Math.min(76, Math.floor(room / count)));
  }

  /**
   * A heat map.
   *
   * figure: { title, value(linear), unit }. Where `random(module)` says what two unrelated adapters
   * have, and `top` what the same ones have, colours begin at the first and end at the second.
   * `choose(linear)` is called for the cell that somebody chooses.
   */
  function heatmap(box, linears, figure, choose = null) {
    const grid = arranged(linears);
    const top = figure.top ?? (Math.max(...linears.map((it) => figure.value(it) ?? 0)) || 1);
    const left = Math.max(...[...grid.names.values()].map((name) => name.length)) * 7.4 + 14;
    const extra = figure.random ? 70 : 0;
    const width = cellWidth(grid.layers.length, box.clientWidth - left - extra - 2);
    const height = width >= 38 ? 34 : 24;
    const right = left + width * grid.layers.length;
    const size = { width: Math.ceil(right + extra + 1), height: height * grid.modules.length + 44 };
    const map = svg("svg", { ...size, class: "heatmap", role: "group", "aria-label": `${figure.title}: layers from left to right, modules from top to bottom` });
    const stride = width >= 24 ? 1 : 5;
    grid.layers.forEach((layer, column) => {
      if (column % stride === 0) map.append(svg("text", { x: left + (column + 0.5) * width, y: 14, class: "axis middle", "aria-hidden": "true" }, layerName(layer)));
    });
    const cells = [];
    grid.modules.forEach((module, row) => {
      const y = 22 + row * height;
      map.append(svg("text", { x: left - 8, y: y + height / 2 + 4, class: "axis end", "aria-hidden": "true" }, grid.names.get(module)));
      cells.push(grid.layers.map((layer, column) => {
        const linear = grid.at(layer, module);
        if (!linear) return null;
        const cell = drawCell(linear, figure, top, grid.names.get(module), choose !== null, { x: left + column * width, y, width, height });
        map.append(cell);
        return cell;
      }));
      if (figure.random) map.append(svg("text", { x: right + 10, y: y + height / 2 + 4, class: "axis", "aria-hidden": "true" }, shown(figure, figure.random(module))));
    });
    if (figure.random) map.append(svg("text", { x: right + 10, y: 14, class: "axis", "aria-hidden": "true" }, "random"));
    map.append(svg("text", { x: left + (right - left) / 2, y: size.height - 6, class: "axis middle", "aria-hidden": "true" }, "layer"));
    box.replaceChildren(scrolling(map, figure.title), legend(top, figure));
    if (choose) movable(map, cells, figure, choose);
  }

  function drawCell(linear, figure, top, name, isButton, place) {
    const value = figure.value(linear), from = figure.random?.(linear.module) ?? 0;
    const step = Math.max(0, Math.min(STEPS - 1, Math.floor((((value ?? 0) - from) / (top - from)) * STEPS)));
    const layer = linear.layer === null ? "" : `layer ${linear.layer}, `;
    const chance = figure.random ? `, random ${shown(figure, from)}` : "";
    const told = `${layer}${name}: ${shown(figure, value)}${figure.unit}${chance}`;
    const role = isButton ? { role: "button", tabindex: "-1", "aria-pressed": "false" } : { role: "img" };
    const cell = svg("g", { class: `cell heat-${step}`, "aria-label": told, ...role });
    cell.linear = linear;
    cell.append(svg("title", {}, told));
    cell.append(svg("rect", { x: place.x + 0.5, y: place.y + 0.5, width: place.width - 1, height: place.height - 1, rx: 3 }));
    if (place.width >= 38) cell.append(svg("text", { x: place.x + place.width / 2, y: place.y + place.height / 2 + 4, class: "middle" }, shown(figure, value)));
    return cell;
  }

  /** One stop for the tab key; arrows move on, Enter and space choose. */
  function movable(map, cells, figure, choose) {
    const all = cells.flat().filter(Boolean), worth = (cell) => figure.value(cell.linear) ?? -1;

    function press(cell, focused = true) {
      for (const other of all) {
        other.setAttribute("aria-pressed", String(other === cell));
        other.setAttribute("tabindex", other === cell ? "0" : "-1");
      }
      if (focused) cell.focus();
      choose(cell.linear);
    }

    map.addEventListener("click", (event) => {
      const cell = event.target.closest(".cell");
      if (cell) press(cell);
    });
    map.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      const cell = event.target.closest(".cell");
      if (!cell) return;
      if (event.key === "Enter" || event.key === " ") press(cell);
      else if (!(event.key in steps)) return;
      else {
        const row = cells.findIndex((it) => it.includes(cell));
        const [down, across] = steps[event.key];
        const next = cells[row + down]?.[cells[row].indexOf(cell) + across];
        if (next) press(next);
      }
      event.preventDefault();
    });
    press(all.reduce((one, other) => (worth(other) > worth(one) ? other : one)), false);
  }

  function scrolling(content, label) {
    const box = html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label });
    box.append(content);
    return box;
  }

  function legend(top, figure) {
    const box = html("p", { class: "legend quiet" });
    const scale = svg("svg", { width: 160, height: 12, "aria-hidden": "true", class: "heatmap" });
    for (let step = 0; step < STEPS; step++) {
      const part = svg("g", { class: `cell heat-${step}` });
      part.append(svg("rect", { x: step * 16, y: 0, width: 16, height: 12 }));
      scale.append(part);
    }
    const ends = figure.random ? ["as random", "the same"] : ["0", `${short(top)}${figure.unit}`];
    box.append(html("span", {}, ends[0]), scale, html("span", {}, ends[1]));
    return box;
  }

  /** The same as a table: a row for each layer. */
  function table(box, linears, figure) {
    const grid = arranged(linears);
    const made = html("table"), head = html("tr"), body = html("tbody");
    head.append(html("th", { scope: "col" }, "Layer"));
    for (const module of grid.modules) head.append(html("th", { scope: "col", class: "number" }, grid.names.get(module)));
    const line = (name, text) => {
      const row = html("tr");
      row.append(html("th", { scope: "row" }, name));
      for (const module of grid.modules) row.append(html("td", { class: "number" }, text(module)));
      body.append(row);
    };
    for (const layer of grid.layers) {
      line(layerName(layer), (module) => {
        const linear = grid.at(layer, module);
        return linear ? shown(figure, figure.value(linear)) : "";
      });
    }
    if (figure.random) line("random", (module) => shown(figure, figure.random(module)));
    const top = html("thead");
    top.append(head);
    made.append(html("caption", { class: "quiet" }, `${figure.title}${figure.unit ? `, in ${figure.unit.trim()}` : ""}`), top, body);
    box.replaceChildren(scrolling(made, `${figure.title}, as a table`));
  }

  /** Bars of values that are not negative, from left to right. */
  function bars(values, label, room) {
    const left = 46, bottom = 24, height = 170;
    const width = Math.max(4, Math.min(22, (room - left - 4) / values.length));
    const top = Math.max(...values) || 1;
    const right = left + width * values.length;
    const y = (value) => 8 + (height - bottom - 8) * (1 - value / top);
    const chart = svg("svg", { width: Math.ceil(right + 2), height, class: "bars", role: "img", "aria-label": label });
    for (const part of [0, 0.5, 1]) {
      chart.append(svg("line", { x1: left, x2: right, y1: y(top * part), y2: y(top * part), class: "rule" }));
      chart.append(svg("text", { x: left - 6, y: y(top * part) + 4, class: "axis end" }, short(top * part)));
    }
    values.forEach((value, place) => {
      const bar = svg("rect", { x: left + place * width + 0.5, width: Math.max(width - 1, 1), y: y(value), height: Math.max(0, y(0) - y(value)) });
      bar.append(svg("title", {}, `direction ${place + 1}: ${short(value)}`));
      chart.append(bar);
      if (place === 0 || (place + 1) % 10 === 0) chart.append(svg("text", { x: left + (place + 0.5) * width, y: height - 8, class: "axis middle" }, String(place + 1)));
    });
    return chart;
  }

  return { heatmap, table, bars, html, short, scrolling };
})();
