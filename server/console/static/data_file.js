/* One file: the start button follows what the check says. */
"use strict";

document.addEventListener("htmx:after:swap", () => {
  const verdict = document.querySelector("#check [data-verdict]");
  const note = document.getElementById("start-note");
  if (!verdict || !note) return;
  const words = {
    ready: "The file is ready.",
    bad: "Mend the file first: the check says what is wrong.",
    late: "The file is not checked yet.",
    refused: "Change the choices first: the check says what is wrong.",
  };
  note.textContent = words[verdict.dataset.verdict];
  document.getElementById("start").disabled = verdict.dataset.verdict !== "ready";
});
