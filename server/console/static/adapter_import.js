/* Sends the files of an adapter to the API, and tells how far it is. */
"use strict";

(() => {
  const form = document.getElementById("import");
  const part = (name) => form.querySelector(`[data-${name}]`);
  const bar = part("progress"), said = part("said"), problem = part("problem"), button = form.querySelector("button");

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    problem.hidden = true;
    bar.hidden = false;
    button.disabled = true;
    said.textContent = "Sending …";
    const sender = new XMLHttpRequest(); // fetch does not tell how much of a body was sent
    sender.open("POST", form.action);
    sender.upload.onprogress = ({ loaded, total }) => {
      bar.querySelector("progress").value = loaded / total;
      if (loaded === total) said.textContent = "Checking every number …";
    };
    sender.onload = () => {
      const answer = parsed(sender.responseText);
      if (sender.status === 200) location.assign(`/console/adapters/${answer.id.split("@")[0]}`);
      else refuse(answer?.error?.message ?? `The server answered with ${sender.status}. Try again.`);
    };
    sender.onerror = () => refuse("The server could not be reached. Nothing was imported, as far as is known: look at the list before you try again.");
    sender.send(new FormData(form));
  });

  function parsed(text) {
    try {
      return JSON.parse(text);
    } catch {
      return null;
    }
  }

  function refuse(message) {
    bar.hidden = true;
    button.disabled = false;
    said.textContent = "";
    problem.querySelector("p").textContent = message;
    problem.hidden = false;
  }
})();
