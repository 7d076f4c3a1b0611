/* Adding a file: drag and drop, how much has been sent, and the sample. */
"use strict";

(() => {
  const units = ["bytes", "KB", "MB", "GB"];

  function size(bytes) {
    let unit = 0;
    while (bytes >= 999.5 && unit < units.length - 1) { bytes /= 1000; unit += 1; }
    return `${bytes.toFixed(unit && bytes < 99.95 ? 1 : 0)} ${units[unit]}`;
  }

  function tell(text) {
    const notice = document.createElement("div");
    const words = document.createElement("p");
    const close = document.createElement("button");
    notice.className = "notice bad";
    notice.setAttribute("role", "alert");
    words.textContent = text;
    close.type = "button";
    close.className = "close";
    close.dataset.close = "";
    close.setAttribute("aria-label", "Close this notice");
    close.textContent = "×";
    notice.append(words, close);
    document.getElementById("notices").replaceChildren(notice);
    notice.scrollIntoView({ block: "nearest" });
  }

  function message(request) {
    try {
      return JSON.parse(request.responseText).error.message;
    } catch {
      return `The server did not take the file (${request.status || "no answer"}). Try again.`;
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    const form = document.getElementById("upload");
    const drop = form.querySelector(".drop");
    const input = form.querySelector("input[type=file]");
    const send = form.querySelector("[data-send]");
    const sending = form.querySelector(".sending");
    const bar = form.querySelector("progress");
    const told = form.querySelector("[data-progress]");
    const what = form.querySelector("[data-what]");
    let request = null;

    function busy(on) {
      drop.hidden = on;
      sending.hidden = !on;
      if (!on) request = null;
    }

    function upload(file) {
      const most = Number(form.dataset.most);
      if (file.size > most) {
        tell(`${file.name} has ${size(file.size)}, and this server takes files up to ${size(most)}: split it.`);
        return;
      }
      const body = new FormData();
      body.append("purpose", "fine-tune");
      body.append("file", file, file.name);
      request = new XMLHttpRequest();
      request.open("POST", "/console/v1/files");
      request.upload.addEventListener("progress", (event) => {
        if (!event.lengthComputable) return;
        bar.value = event.loaded / event.total;
        told.textContent = event.loaded < event.total
          ? `${Math.floor(100 * bar.value)}% of ${size(event.total)}` : "The server stores it…";
      });
      request.addEventListener("load", () => {
        if (request.status === 200) {
          location.assign(`/console/data/${encodeURIComponent(JSON.parse(request.responseText).id)}`);
          return;
        }
        tell(message(request));
        busy(false);
      });
      request.addEventListener("error", () => { tell("The connection broke. Try again."); busy(false); });
      request.addEventListener("abort", () => busy(false));
      what.textContent = file.name;
      told.textContent = "";
      bar.value = 0;
      busy(true);
      request.send(body);
    }

    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (input.files.length) upload(input.files[0]);
    });
    input.addEventListener("change", () => { if (input.files.length) upload(input.files[0]); });
    form.querySelector("[data-abort]").addEventListener("click", () => request?.abort());

    // A file that misses the box must not replace the page.
    for (const kind of ["dragover", "drop"]) {
      document.addEventListener(kind, (event) => event.preventDefault());
    }
    drop.addEventListener("dragover", () => drop.classList.add("over"));
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      drop.classList.remove("over");
      const files = event.dataTransfer.files;
      if (files.length > 1) tell("Drop one file at a time.");
      else if (files.length) upload(files[0]);
    });

    async function sample() {
      const answer = await fetch(form.dataset.sample);
      if (!answer.ok) {
        tell("The sample is not there. Use a file of your own.");
        return;
      }
      const chosen = new DataTransfer();
      chosen.items.add(new File([await answer.blob()], "sample.jsonl", { type: "application/jsonl" }));
      input.files = chosen.files;
      form.querySelector("[data-title]").textContent = "The sample is chosen: 56 answers of a pirate";
      send.textContent = "Add the sample";
      send.hidden = false;
      send.focus();
    }

    send.hidden = true; // a file is sent as soon as it is chosen
    if (form.dataset.sample) sample();
  });
})();
