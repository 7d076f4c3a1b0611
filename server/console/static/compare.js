/* The page Compare: who is asked what, and the one stream that brings all answers. */
"use strict";

(() => {
  const $ = (id) => document.getElementById(id);
  const page = $("compare");
  const { base } = page.dataset;
  const most = Number(page.dataset.most);
  const LONGEST_LINK = 8000; // characters; servers and proxies refuse longer ones
  const lines = new TrainingLines();
  new Likely($("turns"));

  let columns = []; // of each model that answers: { model, series, messages }
  let turns = []; // of each question: { question, answers }
  let running = null; // the AbortController of the stream

  const freeSeries = () => Array.from({ length: most }, (_, at) => at + 1).find((it) => !columns.some((column) => column.series === it));

  function addModel(model) {
    if (columns.length >= most || columns.some((it) => it.model === model) || turns.length) return;
    const column = { model, series: freeSeries(), messages: [] };
    if (model === base) columns.unshift(column);
    else columns.push(column);
    showModels();
  }

  function removeModel(column) {
    columns = columns.filter((it) => it !== column);
    showModels();
    ($("chips").querySelector("button") ?? $("search") ?? $("prompt")).focus();
  }

  function showModels() {
    $("chips").replaceChildren(...columns.map(chip));
    const gone = !columns.some((it) => it.model === base) && !turns.length;
    if (gone) $("chips").append(baseButton());
    $("models-count").textContent = `${columns.length} of at most ${most}`;
    $("send-count").textContent = columns.length > 1 ? `${columns.length} models` : "";
    $("send").disabled = !columns.length || running !== null;
    $("picker").hidden = turns.length > 0 || columns.length >= most;
    $("picker-closed").hidden = turns.length === 0;
    showFound();
    keepAddress();
  }

  function chip(column) {
    const item = fromTemplate("chip");
    item.querySelector(".dot").classList.add(`series-${column.series}`);
    item.querySelector(".name").textContent = column.model;
    item.querySelector(".what").hidden = column.model !== base;
    const remove = item.querySelector(".remove");
    remove.setAttribute("aria-label", `Remove ${column.model}`);
    remove.disabled = running !== null;
    remove.addEventListener("click", () => removeModel(column));
    return item;
  }

  function baseButton() {
    const item = document.createElement("li");
    item.className = "bare";
    const button = document.createElement("button");
    button.type = "button";
    button.className = "button small";
    button.dataset.model = base;
    button.textContent = `Add the base model, ${base}`;
    item.append(button);
    return item;
  }

  // Asking

  const settings = ["temperature", "top_p", "max_tokens", "seed"];

  function parameters() {
    const filled = settings.filter((name) => $(name).value !== "");
    return Object.fromEntries(filled.map((name) => [name, Number($(name).value)]));
  }

  function showSettings() {
    const seed = $("seed").value === "" ? "" : ` · seed ${$("seed").value}`;
    const system = $("system").value.trim() ? " · with a system prompt" : "";
    $("settings-now").textContent = `temperature ${$("temperature").value} · at most ${$("max_tokens").value} tokens${seed}${system}`;
  }

  function beginTurn(question) {
    const system = $("system").value.trim();
    const element = fromTemplate("turn");
    element.querySelector(".question").textContent = cut(question, 300);
    element.querySelector("details").hidden = question.length <= 300;
    element.querySelector("pre").textContent = question;
    const answers = columns.map((column) => {
      column.messages.push({ role: "user", content: question });
      const asked = [...(system ? [{ role: "system", content: system }] : []), ...column.messages];
      const answer = new Answer(column.model, column.series, asked, {
        ended: () => showProgress(turn),
        approved: keepLine,
      });
      answer.column = column;
      return answer;
    });
    const turn = { question, answers };
    const box = element.querySelector(".answers");
    box.setAttribute("aria-label", `Answers to question ${turns.length + 1}`);
    box.append(...answers.map((it) => it.element));
    turns.push(turn);
    $("turns").append(element);
    element.scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    return turn;
  }

  function keepLine(answer, text) {
    const line = TrainingLines.line(answer.asked, text);
    const problem = lines.put(line, answer.line);
    if (!problem) answer.line = line;
    return problem;
  }

  async function ask(question) {
    const turn = beginTurn(question);
    running = new AbortController();
    showState();
    const requests = turn.answers.map((answer) => ({
      model: answer.model, messages: answer.asked, ...parameters(), logprobs: true, top_logprobs: 5,
    }));
    try {
      await read(await post(requests), turn);
      turn.answers.forEach((it) => it.done());
    } catch (error) {
      if (error.name === "AbortError") turn.answers.forEach((it) => it.stop());
      else turn.answers.forEach((it) => it.fail(error.message));
    }
    endTurn(turn);
  }

  async function post(requests) {
    const response = await fetch("/console/compare/stream", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ requests }),
      signal: running.signal,
    });
    if (response.redirected) location.assign(response.url); // the key is not good any more
    if (response.ok && response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
    const body = await response.json().catch(() => ({}));
    throw new Error(body.error?.message ?? `The server answered ${response.status}: load the page again.`);
  }

  async function read(response, turn) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) take(JSON.parse(event.slice("data: ".length)), turn);
      showParting(turn);
    }
  }

  function take(event, turn) {
    const answer = turn.answers[event.column];
    if (event.chunk) answer.take(event.chunk);
    if (event.done) answer.done();
  }

  function showParting(turn) {
    const [first, ...others] = turn.answers; // the base, if it is there
    for (const answer of others) answer.compareWith(first);
  }

  function endTurn(turn) {
    running = null;
    if (!turns.includes(turn)) return showState(); // the chat began again
    for (const { column, usable, text } of turn.answers) {
      // A chat goes on behind whole turns: what was not answered is not asked again.
      if (usable) column.messages.push({ role: "assistant", content: text });
      else column.messages.pop();
    }
    showParting(turn);
    showState();
    const failed = turn.answers.filter((it) => it.state === "failed").length;
    $("status").textContent = failed ? `${failed} of ${turn.answers.length} answers failed.` : "All answers are there.";
    $("prompt").focus({ preventScroll: true });
  }

  function showProgress(turn) {
    const ended = turn.answers.filter((it) => it.state !== "open").length;
    $("status").textContent = `${ended} of ${turn.answers.length} answers are there.`;
  }

  function showState() {
    $("stop").hidden = running === null;
    $("start-again").hidden = turns.length === 0;
    $("reading").hidden = turns.length === 0;
    $("prompt-label").textContent = turns.length ? "Your next question" : "Your question";
    showModels();
  }

  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = $("prompt").value.trim();
    if (running || !columns.length) return;
    if (!question) {
      $("prompt").setCustomValidity("Write a question first.");
      $("prompt").reportValidity();
      return;
    }
    $("prompt").value = "";
    ask(question);
  });
  $("ask").addEventListener("invalid", (event) => { $("settings").open ||= event.target !== $("prompt"); }, true);
  $("ask").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit($("send"));
  });
  $("ask").addEventListener("input", () => {
    $("prompt").setCustomValidity("");
    showSettings();
  });
  $("stop").addEventListener("click", () => running?.abort());
  window.addEventListener("pagehide", () => running?.abort());

  $("start-again").addEventListener("click", () => {
    running?.abort();
    if (!$("prompt").value) $("prompt").value = turns[0].question;
    turns = [];
    columns.forEach((it) => { it.messages = []; });
    $("turns").replaceChildren();
    showState();
    $("prompt").focus();
  });

  // Picking, links and tints

  page.addEventListener("click", (event) => {
    const button = event.target.closest("[data-model]");
    if (button) addModel(button.dataset.model);
  });
  let wanted = null; // what Enter asked for, until the search has answered
  $("search")?.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    wanted = $("search").value;
    addWanted();
  });
  $("search")?.addEventListener("input", () => { wanted = null; });
  document.addEventListener("htmx:after:swap", () => {
    addWanted();
    showFound();
  });

  function addWanted() {
    const list = $("found")?.firstElementChild;
    if (wanted === null || list?.dataset.for !== wanted) return;
    wanted = null;
    const first = list.querySelector("[data-model]:not(:disabled)");
    if (first) addModel(first.dataset.model);
  }

  function showFound() {
    for (const button of $("found")?.querySelectorAll("[data-model]") ?? []) {
      button.disabled = columns.some((it) => it.model === button.dataset.model);
    }
  }

  function linkOfPage() {
    const query = new URLSearchParams();
    for (const { model } of columns) if (model !== base) query.append("model", model);
    if (!columns.some((it) => it.model === base)) query.set("base", "0");
    const prompt = $("prompt").value.trim() || (turns[0]?.question ?? "");
    if (prompt) query.set("prompt", prompt);
    if ($("system").value.trim()) query.set("system", $("system").value.trim());
    for (const name of settings) if ($(name).value !== "") query.set(name, $(name).value);
    return `${location.origin}${location.pathname}?${query}`;
  }

  // Once something was chosen or asked, loading the page again finds the same models and question.
  function keepAddress() {
    const link = linkOfPage();
    if (document.readyState === "complete" && link.length <= LONGEST_LINK) history.replaceState(null, "", link);
  }

  $("copy-link").addEventListener("click", (event) => { // before console.js, which copies
    const link = linkOfPage();
    if (link.length > LONGEST_LINK) {
      event.stopPropagation();
      $("status").textContent = "The texts are too long for a link: send them another way.";
    }
    $("copy-link").dataset.copy = link;
    $("link-row").hidden = false;
    $("link").value = link.length > LONGEST_LINK ? "The texts are too long for a link" : link;
    $("link").select();
  });

  $("tint").addEventListener("change", () => {
    $("turns").classList.toggle("tinted", $("tint").checked);
    $("legend").hidden = !$("tint").checked;
  });

  for (const model of JSON.parse(page.dataset.models)) addModel(model);
  showSettings();
  showState();
})();
