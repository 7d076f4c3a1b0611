/* Curves of several jobs. Those that go on are asked again now and then: a stream for each would use
   up the browser's connections. */
"use strict";

(() => {
  const root = document.getElementById("compared");
  const jobs = JSON.parse(root.dataset.jobs);
  const dashes = [[], [9, 5], [2, 4], [12, 4, 2, 4], [5, 3], [16, 6], [1, 6], [7, 3, 2, 3, 2, 3]];
  const every = 5000;
  const series = (dots) => jobs.map((job, index) => ({
    label: `${job.name} · ${job.id.slice(-4)}`, colour: `--series-${index + 1}`, dash: dashes[index], dots,
  }));
  const train = new Curves(document.getElementById("train-plot"), { series: series(false) });
  const valid = new Curves(document.getElementById("valid-plot"), { series: series(true), height: 220 });
  const along = document.getElementById("along");
  const curves = jobs.map(() => []);

  function draw() {
    const tables = (name, change) => curves.map((points) => {
      const known = points.filter((it) => it[name] != null && it[along.value] != null);
      return [known.map((it) => it[along.value]), change(known.map((it) => it[name]))];
    });
    const joined = (all) => uPlot.join(all);
    train.draw(joined(tables("train_loss", Curves.smooth)));
    valid.draw(joined(tables("valid_loss", (it) => it)));
    root.dataset.points = String(curves.flat().length);
  }

  async function load(index) {
    const answer = await fetch(`/console/v1/fine_tuning/jobs/${encodeURIComponent(jobs[index].id)}/metrics?points=500`);
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    curves[index] = (await answer.json()).data;
  }

  const told = document.getElementById("stream");
  async function loadAll(wanted) {
    const results = await Promise.allSettled(wanted.map(load));
    const wrong = results.find((it) => it.status === "rejected");
    told.textContent = wrong ? `Not all could be read, trying again… (${wrong.reason.message})` : "";
    told.dataset.kind = wrong ? "lost" : "";
    draw();
    return wanted.filter((_, place) => results[place].status === "rejected");
  }

  const places = jobs.map((_, index) => index), going = places.filter((it) => !jobs[it].ended);
  let missing = [];
  async function again() {
    if (!document.hidden) missing = await loadAll([...new Set([...going, ...missing])]);
    if (going.length || missing.length) setTimeout(again, every);
  }

  along.addEventListener("change", draw);
  document.getElementById("log-scale").addEventListener("change", (event) => {
    for (const plot of [train, valid]) plot.setLog(event.target.checked);
  });
  loadAll(places).then((wrong) => { missing = wrong; setTimeout(again, every); });
})();
