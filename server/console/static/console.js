/* What all pages need beside htmx. */
"use strict";

(() => {
  // Times: how long ago, kept true while the page is open, with the browser's own zone on hover.
  const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
  const relative = new Intl.RelativeTimeFormat("en", { numeric: "always" });

  function ago(at) {
    const seconds = Date.now() / 1000 - at;
    if (Math.abs(seconds) < 5) return "just now";
    for (const [unit, length] of units) {
      if (Math.abs(seconds) >= length) return relative.format(-Math.floor(seconds / length), unit);
    }
    return relative.format(-Math.floor(seconds), "second");
  }

  function showTimes(root) {
    for (const time of root.querySelectorAll("time[data-at]")) {
      const at = Number(time.dataset.at);
      time.textContent = ago(at);
      time.title = new Date(at * 1000).toLocaleString();
    }
  }

  // Clicks: close a notice, copy a text, open and close a dialog, ask before what cannot be undone.
  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-close], [data-copy], [data-dialog]");
    if (!target) return;
    if ("close" in target.dataset) close(target.closest(".notice, dialog"));
    if ("copy" in target.dataset) copy(target);
    if ("dialog" in target.dataset) document.getElementById(target.dataset.dialog).showModal();
  });

  function close(box) {
    if (box.tagName === "DIALOG") box.close();
    else box.remove();
  }

  async function copy(button) {
    const before = button.textContent, label = button.getAttribute("aria-label");
    button.removeAttribute("aria-label");
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select the text and copy it";
    }
    setTimeout(() => {
      button.textContent = before;
      if (label) button.setAttribute("aria-label", label);
    }, 2000);
  }

  // Each problem is told once.
  document.addEventListener("htmx:error", () => tell("The server does not answer. This page goes on once it is back."));
  document.addEventListener("htmx:after:swap", (event) => {
    if (event.target.id !== "notices") tell("");
    const seen = new Set();
    for (const notice of document.querySelectorAll("#notices > .notice")) {
      if (seen.has(notice.textContent)) notice.remove();
      seen.add(notice.textContent);
    }
  });

  // Whoever works by keyboard stays where they were, when that part of the page is exchanged.
  let held = null;
  const words = (it) => it.getAttribute("aria-label") ?? it.textContent.trim();
  document.addEventListener("htmx:before:swap", (event) => {
    const part = event.detail.ctx.target, focused = document.activeElement;
    held = part?.id && part.contains(focused) ? { part: part.id, words: words(focused) } : null;
  });
  document.addEventListener("htmx:after:swap", () => {
    const part = held && document.getElementById(held.part);
    if (!part || document.activeElement !== document.body) return;
    const same = [...part.querySelectorAll("a[href], button:enabled, summary")].find((it) => words(it) === held.words);
    if (!same) part.tabIndex = -1;
    (same ?? part).focus({ preventScroll: true });
  });

  function tell(problem) {
    const notices = document.getElementById("notices");
    let notice = notices.querySelector("[data-lost]");
    if (!problem) { if (notice) notice.remove(); return; }
    if (notice) return;
    notice = document.createElement("div");
    notice.className = "notice wait";
    notice.dataset.lost = "";
    notice.textContent = problem;
    notices.append(notice);
  }

  document.addEventListener("DOMContentLoaded", () => {
    showTimes(document);
    setInterval(() => showTimes(document), 10000);
  });
  document.addEventListener("htmx:after:swap", () => showTimes(document));

  // What a page asks for again and again waits while nobody sees the page.
  document.addEventListener("htmx:before:request", (event) => {
    if (document.hidden && event.detail.ctx.sourceEvent?.type === "every") event.preventDefault();
  });
})();
