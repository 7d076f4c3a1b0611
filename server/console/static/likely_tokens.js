/* What a model could have said instead of a token. */
"use strict";

/** The five likeliest tokens at a place, beside the token that is pointed at or focused. */
class Likely {
  constructor(root) {
    this.box = document.getElementById("likely");
    const token = (event) => event.target.closest?.(".token[tabindex]");
    for (const kind of ["pointerover", "focusin"]) {
      root.addEventListener(kind, (event) => { if (token(event)) this.show(token(event)); });
    }
    root.addEventListener("pointerout", (event) => {
      if (token(event) && !this.box.contains(event.relatedTarget)) this.hide();
    });
    root.addEventListener("focusout", () => this.hide());
    this.box.addEventListener("pointerleave", () => this.hide());
    document.addEventListener("scroll", () => this.follow(), { capture: true, passive: true });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") this.hide(); });
    root.addEventListener("keydown", (event) => { if (token(event)) this.move(event, token(event)); });
  }

  move(event, span) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const { spans } = span.answer;
    const at = { Home: 0, End: spans.length - 1 }[event.key] ?? span.index + (steps[event.key] ?? NaN);
    if (!spans[at]) return;
    event.preventDefault();
    span.tabIndex = -1;
    spans[at].tabIndex = 0;
    spans[at].focus({ preventScroll: true });
    spans[at].scrollIntoView({ block: "nearest", inline: "nearest" });
    this.show(spans[at]);
  }

  show(span) {
    const token = span.answer.tokens[span.index];
    this.hide();
    document.getElementById("likely-token").textContent = visible(token.token);
    document.getElementById("likely-share").textContent = percent(token.logprob);
    const top = [...token.top_logprobs];
    if (!top.some((it) => it.token === token.token)) top.push(token);
    this.box.querySelector("tbody").replaceChildren(...top.map((it) => this.row(it, it.token === token.token)));
    this.span = span;
    span.setAttribute("aria-describedby", "likely");
    this.box.hidden = false;
    this.place();
  }

  row(each, chosen) {
    const row = document.createElement("tr");
    const name = document.createElement("th");
    name.scope = "row";
    name.className = "mono";
    name.textContent = `${visible(each.token)}${chosen ? " ✓" : ""}`;
    const bar = document.createElement("meter");
    bar.value = Math.exp(each.logprob);
    bar.setAttribute("aria-hidden", "true");
    const share = document.createElement("td");
    share.className = "number";
    share.textContent = percent(each.logprob);
    const middle = document.createElement("td");
    middle.append(bar);
    row.append(name, middle, share);
    return row;
  }

  /** The page scrolls, perhaps towards the focused token itself. */
  follow() {
    if (this.box.hidden) return;
    if (this.span === document.activeElement) this.place();
    else this.hide();
  }

  place() {
    const at = this.span.getClientRects()[0] ?? this.span.getBoundingClientRect();
    const { width, height } = this.box.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - width - 8));
    const below = at.bottom + height + 8 < window.innerHeight;
    this.box.style.left = `${left}px`;
    this.box.style.top = `${below ? at.bottom + 4 : Math.max(8, at.top - height - 4)}px`;
  }

  hide() {
    this.span?.removeAttribute("aria-describedby");
    this.box.hidden = true;
  }
}
