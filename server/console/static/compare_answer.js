/* One answer of a comparison: its text by tokens, its figures, where it parts, and its judgement. */
"use strict";

const fromTemplate = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

/** The beginning of a long text. */
const cut = (text, most) => (text.length > most ? `${text.slice(0, most)} …` : text);

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  if (share < 0.1) return "< 0.1%";
  return share > 99.9 ? "> 99.9%" : `${share.toFixed(1)}%`;
};

/** A token as one can see it: blanks and line ends too. */
const visible = (text) =>
  text === "" ? "(nothing)" : text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");

class Answer {
  static ENDS = { stop: "ended by itself", length: "cut at the most tokens", stopped: "stopped by you" };
  static FEW_ROWS = 200;
  static FARTHEST = 8; // characters that no token shows, before the next that one does

  /**
   * @param model the id that was asked
   * @param series the number of its colour
   * @param asked the messages that it answers
   * @param hooks `ended(answer)`, and `approved(answer, text)` which returns what is wrong, or ""
   */
  constructor(model, series, asked, hooks) {
    Object.assign(this, { model, asked, hooks, text: "", tokens: [], spans: [], state: "open" });
    this.began = performance.now();
    this.first = this.last = this.usage = null;
    this.element = fromTemplate("answer");
    this.part = (selector) => this.element.querySelector(selector);
    this.element.setAttribute("aria-label", `Answer of ${model}`);
    this.part(".dot").classList.add(`series-${series}`);
    this.part(".name").textContent = model;
    this.shown = 0; // characters of the text that tokens show already
    this.wireJudgement();
    this.wireTable();
  }

  /** A chunk of the API. */
  take(chunk) {
    if (chunk.error) return this.fail(chunk.error.message);
    if (chunk.model !== this.model && chunk.model?.includes("@")) this.part(".name").textContent = chunk.model;
    if (chunk.usage) this.usage = chunk.usage;
    for (const choice of chunk.choices ?? []) {
      this.add(choice.delta?.content ?? "", choice.logprobs?.content ?? []);
      if (choice.finish_reason) this.finish = choice.finish_reason;
    }
  }

  add(text, tokens) {
    if (!text && !tokens.length) return;
    if (this.first === null) {
      this.first = performance.now();
      this.say("answers", "live");
    }
    this.last = performance.now();
    this.text += text;
    for (const token of tokens) this.addToken(token);
    const rest = this.text.slice(this.shown);
    if (!rest) return;
    (this.spans.at(-1) ?? this.part(".text")).append(rest);
    this.shown = this.text.length;
  }

  /** The text decides what is shown. A token may show nothing: an end, or a part of a character. */
  addToken(token) {
    const span = document.createElement("span");
    const at = token.token ? this.text.indexOf(token.token, this.shown) : -1;
    if (at >= 0 && at - this.shown <= Answer.FARTHEST) {
      const before = this.text.slice(this.shown, at);
      if (before) (this.spans.at(-1) ?? this.part(".text")).append(before);
      span.textContent = token.token;
      this.shown = at + token.token.length;
    }
    span.className = `token p${Answer.level(token.logprob)}`;
    span.tabIndex = this.spans.length ? -1 : 0;
    span.answer = this;
    span.index = this.tokens.push(token) - 1;
    this.spans.push(span);
    this.part(".text").append(span);
  }

  static level(logprob) {
    return [0.05, 0.2, 0.5, 0.9].filter((least) => Math.exp(logprob) > least).length;
  }

  fail(message) {
    if (this.state !== "open") return;
    this.part(".notice").hidden = false;
    this.part(".notice").textContent = message;
    this.close("failed", "failed", "bad");
  }

  /** No chunk comes any more. */
  done() {
    if (this.state !== "open") return;
    if (!this.finish) return this.fail("The answer broke off: ask again.");
    const cut = this.finish === "length";
    this.close("whole", cut ? "cut" : "done", cut ? "wait" : "good");
  }

  stop() {
    if (this.state !== "open") return;
    this.finish = "stopped";
    this.close("stopped", "stopped", "wait");
  }

  close(state, word, kind) {
    this.state = state;
    this.say(word, kind);
    this.count();
    if (this.spans.length && !this.spans.at(-1).textContent) {
      this.spans.at(-1).classList.add("end");
      this.spans.at(-1).textContent = "■";
    }
    this.part(".judge").hidden = !this.usable;
    this.part(".table").hidden = !this.tokens.length;
    this.hooks.ended(this);
  }

  /** Whether the chat can go on behind it. */
  get usable() {
    return this.state !== "failed" && this.text !== "";
  }

  say(word, kind) {
    const badge = this.part(".state");
    badge.textContent = word;
    badge.className = `badge state ${kind}`;
  }

  count() {
    const number = this.usage?.completion_tokens ?? this.tokens.length;
    const said = [`${number} token${number === 1 ? "" : "s"}`];
    if (this.first !== null) said.push(`first after ${((this.first - this.began) / 1000).toFixed(2)} s`);
    const seconds = (this.last - this.first) / 1000;
    if (number > 1 && seconds > 0) said.push(`${((number - 1) / seconds).toFixed(1)} tokens/s`);
    if (this.finish) said.push(Answer.ENDS[this.finish] ?? this.finish);
    this.part(".counts").textContent = this.state === "failed" && !number ? "" : said.join(" · ");
  }

  /** Mark the first token that is not as in another answer. */
  compareWith(other) {
    if (this.partsAt !== undefined || !this.tokens.length) return;
    const same = (a, b) => a && b && a.token === b.token && String(a.bytes) === String(b.bytes);
    const open = this.state === "open" || other.state === "open";
    const most = open ? Math.min(this.tokens.length, other.tokens.length) : Math.max(this.tokens.length, other.tokens.length);
    let at = this.agreed ?? 0;
    while (at < most && same(this.tokens[at], other.tokens[at])) at += 1;
    this.agreed = at;
    const line = this.part(".parting");
    if (at < most) {
      this.partsAt = at;
      this.mark(at);
      const go = document.createElement("button");
      go.type = "button";
      go.className = "link";
      go.textContent = `at token ${at + 1}`;
      go.addEventListener("click", () => (this.spans[at] ?? this.spans.at(-1)).focus());
      line.replaceChildren("◆ Parts from ", other.model, " ", go);
      line.hidden = false;
    } else if (!open) {
      line.textContent = `The same as ${other.model}`;
      line.hidden = false;
    }
  }

  mark(at) {
    const mark = document.createElement("span");
    mark.className = "part";
    mark.textContent = "◆";
    mark.setAttribute("aria-hidden", "true");
    const span = this.spans[at];
    if (span) span.classList.add("parts");
    if (span) span.before(mark);
    else this.part(".text").append(mark);
  }

  wireJudgement() {
    const editor = this.part(".editor");
    const up = this.part(".up"), down = this.part(".down"), field = this.part("textarea");
    const judge = (good) => {
      this.good = good;
      up.setAttribute("aria-pressed", good);
      down.setAttribute("aria-pressed", !good);
      this.part(".what").textContent = good
        ? "Good: add it as it is, or change what could be better"
        : "Bad: write the answer as it should have been";
      if (editor.hidden) field.value = this.text;
      editor.hidden = false;
      this.complain("");
      field.focus();
    };
    up.addEventListener("click", () => judge(true));
    down.addEventListener("click", () => judge(false));
    this.part(".cancel").addEventListener("click", () => this.judged(false));
    editor.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = field.value.trim();
      if (!text) return this.complain("An empty answer teaches nothing: write one.");
      if (!this.good && text === this.text.trim()) {
        return this.complain("This is still the bad answer: correct it first, or say that it is good.");
      }
      const problem = this.hooks.approved(this, text);
      this.complain(problem);
      if (!problem) this.judged(true);
    });
  }

  complain(problem) {
    this.part(".problem").textContent = problem;
    this.part(".problem").hidden = !problem;
  }

  judged(kept) {
    this.part(".editor").hidden = true;
    const button = this.part(this.good ? ".up" : ".down");
    if (!kept) {
      this.part(".up").setAttribute("aria-pressed", "false");
      this.part(".down").setAttribute("aria-pressed", "false");
    }
    button.focus();
  }

  wireTable() {
    const table = this.part(".table"), more = this.part(".table .more");
    const fill = (most) => {
      this.part("tbody").replaceChildren(...this.tokens.slice(0, most).map((token, at) => this.row(token, at)));
      more.hidden = this.tokens.length <= most;
    };
    table.addEventListener("toggle", () => { if (table.open) fill(Answer.FEW_ROWS); });
    more.firstElementChild.addEventListener("click", () => fill(Infinity));
  }

  row(token, at) {
    const row = document.createElement("tr");
    const others = token.top_logprobs.filter((it) => it.token !== token.token).slice(0, 2);
    const told = others.map((it) => `${visible(it.token)} ${percent(it.logprob)}`).join(", ");
    const cells = [["number", at + 1], ["mono", visible(token.token)], ["number", percent(token.logprob)], ["mono", told]];
    for (const [kind, value] of cells) {
      const cell = document.createElement("td");
      cell.className = kind;
      cell.textContent = value;
      row.append(cell);
    }
    return row;
  }
}
