"use strict";
// Lists the latest jobs, and refreshes the list every second.

const note = document.getElementById("note");
const table = document.getElementById("jobs");

function output(job) {
  if (job.downloadUrl) return element("a", { href: job.downloadUrl, textContent: job.outputFilename || "download" });
  return job.failureMessage || "";
}

function row(job) {
  const percent = job.pct || 0;
  return element("tr", {},
    element("td", { className: "id", title: job.createdAt }, job.id, element("br"), job.externalId || ""),
    element("td", {}, job.sourceFilename || ""),
    element("td", { className: job.status }, job.status, job.encoder ? ` (${job.encoder})` : ""),
    element("td", {}, element("progress", { max: 100, value: percent }), ` ${Math.round(percent)} %`),
    element("td", {}, output(job)));
}

async function refresh() {
  if (!apiKey()) return;
  const response = await fetch("/pages/jobs", { headers: { "X-API-Key": apiKey() } });
  const body = await response.json();
  if (!response.ok) {
    note.textContent = body.message;
    return;
  }
  note.textContent = body.jobs.length ? `The last ${body.jobs.length} of ${body.total} jobs.` : "There are no jobs yet.";
  table.replaceChildren(...body.jobs.map(row));
}

async function live() {
  for (;;) {
    await refresh().catch(() => { note.textContent = "The sandbox does not answer."; });
    await new Promise((done) => setTimeout(done, 1000));
  }
}

live();
