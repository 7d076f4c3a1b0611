/* Lines for training, kept in this browser until they become a file. */
"use strict";

class TrainingLines {
  static MOST_LINES = 500;
  static MOST_CHARACTERS = 1_000_000; // browsers keep about five million
  static FEW = 20;
  static ENOUGH = 10; // what a training file needs

  constructor() {
    this.root = document.getElementById("lines");
    this.key = `verandah.training-lines/${this.root.dataset.owner}`;
    this.part = (id) => document.getElementById(id);
    this.few = true;
    this.part("lines-more").addEventListener("click", () => { this.few = false; this.show(); });
    this.part("download-lines").addEventListener("click", () => this.download());
    this.part("make-file")?.addEventListener("click", () => this.upload(this.text(), `compare-${TrainingLines.now()}.jsonl`));
    this.part("append")?.addEventListener("toggle", () => this.listFiles());
    this.part("append-lines")?.addEventListener("click", () => this.append());
    this.part("edit-line").addEventListener("submit", (event) => {
      event.preventDefault();
      const problem = this.save();
      this.part("edit-line").querySelector(".problem").textContent = problem;
      if (problem) return;
      this.part("edit-line").close();
      this.focusLine(this.saved);
    });
    window.addEventListener("storage", (event) => { if (event.key === this.key) this.show(); });
    this.show();
  }

  /** What is kept: another tab may have changed it. */
  read() {
    try {
      const kept = JSON.parse(localStorage.getItem(this.key) ?? "[]");
      if (Array.isArray(kept) && kept.every(TrainingLines.isLine)) return kept;
    } catch {
      // It is no JSON, or the browser keeps nothing for this site.
    }
    this.say("What this browser kept cannot be read: the list begins anew.");
    return [];
  }

  static isLine(line) {
    const messages = line?.messages;
    return Array.isArray(messages) && messages.length > 0 && messages.every((it) => typeof it?.content === "string");
  }

  /** Returns what is wrong, or "". */
  write(lines) {
    const text = JSON.stringify(lines);
    if (lines.length > TrainingLines.MOST_LINES || text.length > TrainingLines.MOST_CHARACTERS) {
      return `This browser keeps at most ${TrainingLines.MOST_LINES} lines with a million characters in all: make a file of them first.`;
    }
    try {
      localStorage.setItem(this.key, text);
    } catch {
      return "This browser has no room for the line: make a file of the others first, or allow this site to keep data.";
    }
    this.show();
    return "";
  }

  /** A chat and its corrected answer. Nobody judged the earlier ones: they are read, not learnt. */
  static line(messages, answer) {
    const asked = messages.map((it) => (it.role === "assistant" ? { ...it, weight: 0 } : it));
    return { messages: [...asked, { role: "assistant", content: answer }] };
  }

  /** Add a line, in the place of another if that is there. Returns what is wrong, or "". */
  put(line, before) {
    const lines = this.read();
    const at = before ? this.find(lines, before) : -1;
    if (at >= 0) lines[at] = line;
    else if (this.find(lines, line) < 0) lines.push(line);
    const problem = this.write(lines);
    if (!problem) this.say("Added to the training lines at the foot of the page.");
    return problem;
  }

  text() {
    return this.read().map((line) => `${JSON.stringify(line)}\n`).join("");
  }

  say(text) {
    this.part("lines-status").textContent = text;
  }

  show() {
    const lines = this.read();
    const first = this.few ? Math.max(0, lines.length - TrainingLines.FEW) : 0;
    this.part("lines-count").textContent = lines.length;
    this.part("line-list").replaceChildren(...lines.slice(first).map((line, at) => this.item(line, first + at)));
    this.part("line-list").start = first + 1;
    this.part("lines-more").hidden = first === 0;
    this.part("lines-actions").hidden = !lines.length;
    const missing = TrainingLines.ENOUGH - lines.length;
    this.part("lines-hint").textContent =
      lines.length && missing > 0
        ? `Training takes at least ${TrainingLines.ENOUGH} lines in a file: ${missing} more, or add these to a file that you have.`
        : "";
  }

  item(line, at) {
    const item = fromTemplate("line");
    const find = (selector) => item.querySelector(selector);
    const { messages } = line;
    const answer = messages.at(-1);
    const question = messages.findLast((it) => it.role === "user")?.content ?? "";
    const turns = messages.filter((it) => it.role === "user").length;
    find(".asked").textContent = `${cut(question, 200)}${turns > 1 ? ` (turn ${turns} of a chat)` : ""}`;
    find(".learnt").textContent = cut(answer.content, 600);
    find(".edit").setAttribute("aria-label", `Edit line ${at + 1}`);
    find(".remove").setAttribute("aria-label", `Remove line ${at + 1}`);
    find(".edit").addEventListener("click", () => this.edit(line));
    find(".remove").addEventListener("click", () => this.remove(line));
    return item;
  }

  edit(line) {
    const dialog = this.part("edit-line");
    const told = line.messages.slice(0, -1).map((it) => `${it.role}: ${it.content}`);
    this.edited = line;
    this.part("edit-before").textContent = told.join("\n\n");
    this.part("edit-answer").value = line.messages.at(-1).content;
    dialog.querySelector(".problem").textContent = "";
    dialog.showModal();
    this.part("edit-answer").focus();
  }

  /** Where a line is now: another tab may have moved it. */
  find(lines, line) {
    const text = JSON.stringify(line);
    return lines.findIndex((it) => JSON.stringify(it) === text);
  }

  /** Keep what was edited. Returns what is wrong, or "". */
  save() {
    const answer = this.part("edit-answer").value.trim();
    if (!answer) return "An empty answer teaches nothing: write one, or remove the line.";
    const lines = this.read(), at = this.find(lines, this.edited);
    if (at < 0) return "Another tab removed or changed this line meanwhile: copy your text, and cancel.";
    const messages = this.edited.messages;
    lines[at] = { messages: [...messages.slice(0, -1), { ...messages.at(-1), content: answer }] };
    const problem = this.write(lines);
    if (!problem) this.say(`Line ${at + 1} is changed.`);
    this.saved = at;
    return problem;
  }

  /** The list is made anew when it changes: whoever works by keyboard goes on at the line. */
  focusLine(at) {
    this.part("line-list").querySelector(`[aria-label="Edit line ${at + 1}"]`)?.focus();
  }

  remove(line) {
    const lines = this.read(), at = this.find(lines, line);
    if (at < 0) return this.show();
    lines.splice(at, 1);
    this.say(this.write(lines) || "The line is removed. ");
    const back = document.createElement("button");
    back.type = "button";
    back.className = "button small";
    back.textContent = "Put it back";
    back.addEventListener("click", () => {
      this.say(this.write(this.read().toSpliced(at, 0, line)) || "The line is back.");
      this.focusLine(at);
    });
    this.part("lines-status").append(back);
    back.focus();
  }

  static now() {
    return new Date().toISOString().slice(0, 16).replace("T", "-").replace(":", "");
  }

  download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([this.text()], { type: "application/jsonl" }));
    link.download = `compare-${TrainingLines.now()}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  /** Upload a file with the lines, forget them, and go to the file's page. */
  async upload(text, name) {
    const sent = this.read();
    const buttons = this.root.querySelectorAll("#make-file, #append-lines");
    const busy = (on) => buttons.forEach((it) => { it.disabled = on; });
    busy(true);
    this.say("Uploading …");
    try {
      const form = new FormData();
      form.append("purpose", "fine-tune");
      form.append("file", new Blob([text], { type: "application/jsonl" }), name);
      const file = await TrainingLines.json(await fetch("/console/v1/files", { method: "POST", body: form }));
      const kept = this.read();
      this.write(kept.filter((line) => this.find(sent, line) < 0)); // what another tab added meanwhile stays
      location.assign(`/console/data/${encodeURIComponent(file.id)}`);
    } catch (error) {
      this.say(`The file was not made: ${error.message}`);
    } finally {
      busy(false);
    }
  }

  static async json(response) {
    const body = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(body.error?.message ?? `the server answered ${response.status}`);
    return body;
  }

  async listFiles() {
    if (!this.part("append").open) return;
    try {
      const page = await TrainingLines.json(await fetch("/console/v1/files?purpose=fine-tune&limit=50&order=desc"));
      this.part("append-to").replaceChildren(...page.data.map((file) => new Option(`${file.filename} · ${file.id}`, file.id)));
      this.part("append-lines").disabled = !page.data.length;
      if (!page.data.length) this.say("You have no training file yet.");
    } catch (error) {
      this.say(`The files cannot be listed: ${error.message}`);
    }
  }

  /** Files do not change, so both together are a new one. */
  async append() {
    const chosen = this.part("append-to").selectedOptions[0];
    if (!chosen) return;
    try {
      const response = await fetch(`/console/v1/files/${encodeURIComponent(chosen.value)}/content`);
      if (!response.ok) await TrainingLines.json(response);
      const before = (await response.text()).replace(/\s*$/, "\n");
      if (!("messages" in JSON.parse(before.split("\n", 1)[0]))) throw new Error("its lines are no chats, and a file has one kind of line");
      const name = chosen.text.split(" · ")[0].replace(/\.jsonl$/, "");
      await this.upload(before + this.text(), `${name}-and-${this.read().length}.jsonl`);
    } catch (error) {
      this.say(`Nothing can be added to that file: ${error.message}`);
    }
  }
}
