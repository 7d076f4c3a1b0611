/* The page of an adapter: its analysis as a picture, where it is in memory, the question before
   something is deleted. */
"use strict";

(() => {
  const PLACE_MS = 4000;

  // Where it is in memory: asked for while somebody may look.
  const place = document.getElementById("place");
  if (place) {
    setInterval(() => {
      if (!document.hidden) place.dispatchEvent(new Event("refresh"));
    }, PLACE_MS);
  }

  // The question before a deletion comes as a part of a page.
  const ask = document.getElementById("ask"), asked = document.getElementById("ask-body");
  document.addEventListener("htmx:after:swap", () => { if (asked.childElementCount && !ask.open) ask.showModal(); });
  ask.addEventListener("close", () => asked.replaceChildren());

  const section = document.getElementById("changed");
  if (!section?.dataset.analysis) return;

  const part = (box, name) => box.querySelector(`[data-${name}]`);
  const start = part(section, "analyse"), results = part(section, "results");
  const likeness = part(section, "likeness"), compare = part(section, "compare");
  const percent = (share) => (share === null ? null : 100 * share);
  const { html, short } = Drawing;

  start.addEventListener("click", () => analyse(section, "", show));
  if (JSON.parse(section.dataset.quick)) analyse(section, "", show);
  else {
    start.hidden = false;
    part(section, "said").textContent = "This takes the server a while: seconds to minutes, on one core. It keeps the result.";
  }

  /** Ask for the analysis, tell how far it is, and show the document. */
  async function analyse(box, query, shown) {
    const bar = part(box, "progress"), said = part(box, "said");
    start.hidden = true;
    bar.hidden = false;
    said.textContent = "Analysing …";
    let document = null;
    try {
      const answer = await fetch(`${section.dataset.analysis}?stream=true${query}`);
      if (!answer.ok) throw new Error((await answer.json()).error.message);
      for await (const { name, data } of events(answer)) {
        if (data === "[DONE]") break;
        const told = JSON.parse(data);
        if (name === "error") throw new Error(told.error.message);
        if (told.object === "adapter.analysis.progress") bar.querySelector("progress").value = told.total ? told.done / told.total : 0;
        else document = told;
      }
      if (!document) throw new Error("The connection broke before the analysis was there. Try again.");
      said.textContent = "";
      shown(document);
    } catch (error) {
      said.textContent = error.message;
      start.hidden = box !== section;
    }
    bar.hidden = true;
  }

  /** The server-sent events of an answer: their name and data. */
  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const pieces = (text + value).split("\n\n");
      text = pieces.pop();
      for (const piece of pieces) {
        const lines = piece.split("\n");
        const field = (name) => lines.filter((line) => line.startsWith(`${name}: `)).map((line) => line.slice(name.length + 2)).join("\n");
        if (field("data")) yield { name: field("event"), data: field("data") };
      }
    }
  }

  function show(document) {
    results.hidden = false;
    const share = document.relative_norm === null ? "" : `All updates together are ${short(percent(document.relative_norm))}% of the weights that they change. `;
    part(results, "summary").textContent = `${share}${document.trained_parameters.toLocaleString("en")} numbers were trained, in ${document.layers.length} linear layers.`;
    chosen(results, document.layers, figures(document), (linear) => spectrum(linear));
  }

  /** Fill the choice of figures, and draw what is chosen. */
  function chosen(box, linears, list, choose) {
    const select = part(box, "figure");
    select.replaceChildren(...list.map((figure, place) => html("option", { value: place }, figure.title)));
    const draw = () => {
      const figure = list[select.value];
      Drawing.heatmap(part(box, "map"), linears, figure, choose);
      Drawing.table(part(box, "table"), linears, figure);
    };
    select.onchange = draw;
    draw();
  }

  function figures(document) {
    const trained = [...new Set(document.layers.flatMap((it) => Object.keys(it.trained)))];
    const known = trained.filter((name) => document.layers.some((it) => (it.trained[name]?.moved ?? null) !== null));
    return [
      { title: "How large the update is, beside the weight", unit: "%", value: (it) => percent(it.relative_norm) },
      { title: "Size of the update", unit: "", value: (it) => it.norm },
      { title: "What it does to the input that it changes most", unit: "", value: (it) => it.spectral_norm },
      { title: "How many directions matter (stable rank)", unit: "", value: (it) => it.stable_rank },
      { title: "How many directions, small ones too (effective rank)", unit: "", value: (it) => it.effective_rank },
      { title: "How many directions are not zero (rank)", unit: "", value: (it) => it.numerical_rank },
      ...known.map((name) => ({ title: `How far training moved ${name}`, unit: "", value: (it) => it.trained[name]?.moved ?? null })),
    ];
  }

  /** The singular values of one linear. */
  function spectrum(linear) {
    const box = part(section, "spectrum"), values = linear.singular_values;
    const total = linear.norm ** 2;
    let sum = 0, most = 0;
    while (most < values.length && sum < 0.8 * total) sum += values[most++] ** 2;
    const share = total ? Math.round((100 * sum) / total) : 0;
    const told = total ? `Its ${most === 1 ? "largest direction makes" : `${most} largest directions make`} ${share}% of the change. ` : "It changes nothing here. ";
    const chart = Drawing.bars(values, `Singular values of ${linear.path}, falling from ${short(values[0] ?? 0)}`, box.clientWidth);
    box.replaceChildren(
      html("h3", {}, linear.path),
      html("p", { class: "quiet" }, `${told}Each bar is a direction, as large as the update is in it (its singular value${values.length < Math.min(...linear.shape) ? `; the largest ${values.length}` : ""}).`),
      Drawing.scrolling(chart, "Singular values"),
      facts([
        ["Shape", linear.shape.join(" × ")], ["Beside the weight", linear.relative_norm === null ? "–" : `${short(percent(linear.relative_norm))}%`],
        ["Stable rank", short(linear.stable_rank)], ["Effective rank", short(linear.effective_rank)],
        ...Object.entries(linear.trained).map(([name, it]) => [`${name} moved`, it.moved === null ? "not known" : short(it.moved)]),
      ]),
    );
  }

  function facts(pairs) {
    const list = html("dl", { class: "figures small" });
    for (const [name, value] of pairs) {
      const figure = html("div", { class: "figure" });
      figure.append(html("dt", {}, name), html("dd", {}, value));
      list.append(figure);
    }
    return list;
  }

  // The other adapter: suggestions while somebody types, then both side by side.
  const other = document.getElementById("other");
  let waiting = 0;
  other.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(suggest, 200);
  });
  other.addEventListener("focus", suggest, { once: true });

  async function suggest() {
    const answer = await fetch(`/console/v1/adapters?limit=20&contains=${encodeURIComponent(other.value.trim())}`);
    if (!answer.ok) return;
    const names = (await answer.json()).data.filter((it) => it.shared !== "use").map((it) => it.id);
    document.getElementById("others").replaceChildren(...names.map((value) => html("option", { value })));
  }

  compare.addEventListener("submit", (event) => {
    event.preventDefault();
    likeness.hidden = true;
    analyse(compare, `&compare=${encodeURIComponent(other.value.trim())}`, showLikeness);
  });

  function showLikeness({ comparison }) {
    const linears = comparison.layers;
    likeness.hidden = false;
    if (!linears.length) {
      part(likeness, "summary").textContent = `${comparison.id} changes none of the linear layers that this one changes, so they have nothing in common.`;
      for (const name of ["map", "table"]) part(likeness, name).replaceChildren();
      return;
    }
    const random = (side) => (module) => mean(linears.filter((it) => it.module === module).map((it) => it[side].chance));
    const space = (side, title) => ({ title, unit: "", top: 1, value: (it) => it[side].similarity, random: random(side) });
    const written = linears.filter((it) => it.left.similarity !== null);
    const seen = mean(written.map((it) => it.left.similarity)), luck = mean(written.map((it) => it.left.chance));
    const word = seen - luck < 0.1 * (1 - luck) ? "hardly more than chance" : seen - luck < 0.5 * (1 - luck) ? "more than chance" : "much the same places";
    part(likeness, "summary").textContent = `${comparison.id} (${comparison.method}, rank ${comparison.rank}): where they write to, they are ${seen.toFixed(2)} alike on average, and two random adapters ${luck.toFixed(2)}: ${word}. 1 means the same directions, 0 none in common.`;
    chosen(likeness, linears, [
      space("left", "Directions that they write to"),
      space("right", "Directions that they read from"),
      { title: "Whether they make the same change (cosine)", unit: "", top: 1, value: (it) => it.cosine },
    ], null);
  }

  function mean(numbers) {
    return numbers.length ? numbers.reduce((sum, it) => sum + it, 0) / numbers.length : 0;
  }
})();
