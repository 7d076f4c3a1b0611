/* A new key's value is shown once: bring it into view, and let a reload show the list again. */
"use strict";

(() => {
  let shown = null;

  function show() {
    const made = document.getElementById("made-title");
    if (!made || made === shown) return;
    shown = made;
    made.focus();
    made.scrollIntoView({ block: "start" });
    for (const form of document.querySelectorAll("details[open] > form")) form.closest("details").open = false;
    const back = document.querySelector("[data-made-back]");
    // A page that came of a form would be made again, and another key with it.
    if (!document.getElementById("made")) history.replaceState(null, "", back.dataset.madeBack);
  }

  document.addEventListener("DOMContentLoaded", show);
  document.addEventListener("htmx:after:swap", show);
})();
