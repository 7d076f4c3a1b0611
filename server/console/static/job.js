/* One job: its curves and its log, first as far as they are, then as they come. */
"use strict";

(() => {
  const root = document.getElementById("curves");
  const job = JSON.parse(root.dataset.job);
  const api = `/console/v1/fine_tuning/jobs/${encodeURIComponent(job.id)}`;
  const points = new Map(); // by step: whatever is told twice is drawn once
  const most = 4000;
  const plain = (label, colour) => ({ series: [{ label, colour }], height: 130, legend: false });
  const loss = new Curves(document.getElementById("loss-plot"), { series: [
    { label: "Training, each step", colour: "--series-1", width: 1, faint: true },
    { label: "Training, smoothed", colour: "--series-1", width: 2.5 },
    { label: "Held out", colour: "--series-2", dash: [7, 4], dots: true },
    { label: "Base, held out", colour: "--series-9", dash: [2, 4], width: 1.5 },
    ...(job.continues ? [{ label: "Where it started", colour: "--series-7", dash: [10, 4], width: 1.5 }] : []),
  ] });
  const rate = new Curves(document.getElementById("rate-plot"), plain("Learning rate", "--series-3"));
  const speed = new Curves(document.getElementById("speed-plot"), plain("Tokens/s", "--series-5"));
  const state = () => document.getElementById("job-state");

  // Drawing
  let drawn = false;
  function draw() {
    if (drawn) return;
    drawn = true;
    requestAnimationFrame(() => {
      drawn = false;
      const all = [...points.values()].sort((a, b) => a.step - b.step);
      const column = (name) => all.map((it) => it[name] ?? null);
      document.getElementById("no-steps").hidden = all.length > 0 || ended;
      const steps = column("step"), train = column("train_loss"), { base, start } = state().dataset;
      const level = (known) => steps.map(() => (known === "" ? null : Number(known)));
      const levels = job.continues ? [level(base), level(start)] : [level(base)];
      loss.draw([steps, train, Curves.smooth(train), column("valid_loss"), ...levels]);
      rate.draw([steps, column("learning_rate")]);
      speed.draw([steps, column("tokens_per_second")]);
      describe(all);
      fillTable(all);
    });
  }

  function describe(all) {
    const last = (name) => all.findLast((it) => it[name] != null)?.[name];
    const words = [`Loss by step, ${all.length} steps drawn`];
    for (const [name, label] of [["train_loss", "newest training loss"], ["valid_loss", "newest held-out loss"]]) {
      if (last(name) != null) words.push(`${label} ${Curves.number(last(name))}`);
    }
    document.getElementById("loss-plot").setAttribute("aria-label", words.join("; "));
    root.dataset.steps = String(all.length);
  }

  const table = document.getElementById("numbers"), shown = new Set();
  table.addEventListener("toggle", draw);
  function fillTable(all) {
    if (!table.open) return;
    const body = table.querySelector("tbody");
    for (const it of all) {
      if (shown.has(it.step)) continue;
      shown.add(it.step);
      const row = body.insertRow();
      for (const name of ["step", "train_loss", "valid_loss", "learning_rate", "tokens_per_second"]) {
        const cell = row.insertCell();
        cell.className = "number";
        cell.textContent = name === "step" ? it.step : Curves.number(it[name]);
      }
    }
  }

  async function load() {
    const answer = await fetch(`${api}/metrics`);
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const { data, reported } = await answer.json();
    const end = data.at(-1)?.step ?? -1;
    for (const step of points.keys()) if (step < end) points.delete(step);
    for (const point of data) points.set(point.step, point);
    const note = document.getElementById("thinned");
    note.hidden = reported <= data.length;
    note.textContent = `${data.length.toLocaleString("en")} of ${reported.toLocaleString("en")} steps are drawn: of each span the one with the lowest and the one with the highest training loss.`;
    draw();
  }

  let loading = false, failed = 0;
  async function loadUntilThere() {
    if (loading) return;
    loading = true;
    for (let there = false; !there; ) {
      there = await load().then(() => true, () => false);
      if (!there) await new Promise((go) => setTimeout(go, Math.min(1000 * 2 ** failed++, 15000)));
    }
    loading = false;
    failed = 0;
  }

  // The log
  const log = document.getElementById("log"), entries = log.querySelector("ol");
  const clock = (at) => new Date(at * 1000).toLocaleTimeString();
  function showClocks() {
    for (const time of entries.querySelectorAll("time[data-clock]")) {
      time.textContent = clock(Number(time.dataset.clock));
      time.title = new Date(Number(time.dataset.clock) * 1000).toLocaleString();
    }
  }

  function note(event) {
    if (entries.querySelector(`[data-event="${CSS.escape(event.id)}"]`)) return;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const item = document.createElement("li"), time = document.createElement("time"), text = document.createElement("span");
    item.className = event.level;
    item.dataset.event = event.id;
    time.dataset.clock = event.created_at;
    time.textContent = clock(event.created_at);
    text.className = "said";
    text.textContent = event.message;
    item.append(time, " ");
    if (event.level !== "info") {
      const level = document.createElement("strong");
      level.textContent = event.level === "warn" ? "Warning" : "Error";
      item.append(level, " ");
    }
    item.append(text);
    entries.append(item);
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  function take(event) {
    if (event.type === "metrics") {
      points.set(event.data.step, event.data);
      if (points.size > most) loadUntilThere(); // thinned anew
      draw();
    } else {
      note(event);
      document.body.dispatchEvent(new CustomEvent("job-news"));
    }
  }

  // The stream. It is opened again here, since a browser gives up after some refusals.
  let source = null, last = job.after, ended = job.ended, waits = 0, timer = 0;
  const told = document.getElementById("stream");
  function tell(words, kind) {
    told.textContent = words;
    told.dataset.kind = kind;
  }

  function open() {
    clearTimeout(timer);
    if (source || ended || document.hidden) return;
    const after = last ? `&after=${encodeURIComponent(last)}` : "";
    source = new EventSource(`${api}/events?stream=true${after}`);
    source.onopen = () => tell("Live", "live");
    source.onerror = () => { close(); lost(); };
    source.onmessage = (message) => {
      waits = 0;
      if (message.data === "[DONE]") return finish();
      last = message.lastEventId;
      take(JSON.parse(message.data));
    };
  }

  function close() {
    source?.close();
    source = null;
  }

  function finish() {
    ended = true;
    close();
    tell("", "ended");
    document.body.dispatchEvent(new CustomEvent("job-news"));
  }

  async function lost() {
    tell("Connection lost, trying again…", "lost");
    const wait = Math.min(1000 * 2 ** waits++, 15000);
    timer = setTimeout(open, wait);
    const answer = await fetch(api).catch(() => null);
    if (answer && [401, 403, 404].includes(answer.status)) { // no use to try again
      clearTimeout(timer);
      ended = true;
      close();
      tell((await answer.json()).error.message, "lost");
    }
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      clearTimeout(timer);
      close();
    } else {
      open();
    }
  });

  // One question to a checkpoint
  const ask = document.getElementById("ask");
  let asking = null;
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-ask]");
    if (!button) return;
    ask.hidden = false;
    ask.elements.model.value = button.dataset.ask;
    document.getElementById("asked-model").textContent = button.dataset.ask;
    ask.elements.prompt.focus();
  });
  ask?.addEventListener("submit", async (event) => {
    event.preventDefault();
    asking?.abort();
    asking = new AbortController();
    const answer = document.getElementById("answer"), { signal } = asking;
    answer.hidden = false;
    answer.textContent = "…";
    try {
      await answered(ask.elements.model.value, ask.elements.prompt.value, signal, (text) => { answer.textContent = text; });
    } catch (error) {
      if (!signal.aborted) answer.textContent = `No answer: ${error.message}`;
    }
  });

  async function answered(model, question, signal, show) {
    const body = { model, messages: [{ role: "user", content: question }], stream: true, temperature: 0, max_tokens: 200 };
    const answer = await fetch("/console/v1/chat/completions", {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    let text = "", rest = "";
    for await (const piece of pieces(answer.body.pipeThrough(new TextDecoderStream()))) {
      const lines = (rest + piece).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: {")) continue;
        const chunk = JSON.parse(line.slice(6));
        if (chunk.error) throw new Error(chunk.error.message);
        text += chunk.choices[0]?.delta?.content ?? "";
        show(text);
      }
    }
    if (!text) show("(an empty answer)");
  }

  async function* pieces(stream) {
    const reader = stream.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
  }

  document.addEventListener("htmx:after:swap", () => { showClocks(); draw(); });
  document.getElementById("log-scale").addEventListener("change", (event) => loss.setLog(event.target.checked));
  showClocks();
  log.scrollTop = log.scrollHeight;
  loadUntilThere();
  open();
})();
