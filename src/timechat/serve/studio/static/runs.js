// The runs page: what was trained, how it went, and whether it got better. A run that is still
// training is looked at again every few seconds.

import { call } from "./api.js";
import { at, attempt, button, make, say } from "./dom.js";

const EVERY_MS = 4000;
const state = { shown: null, drawn: "" };

async function list() {
  const { runs } = await call("GET", "/studio/runs");
  if (!runs.length) say("No run is served here. Serve one with: timechat serve runs/NAME");
  const rows = runs.map((run) =>
    make("tr", {},
      make("td", {}, button(run.name, () => open(run.name).then(() => at("run").querySelector("h2").focus()), "Show this run", "")),
      make("td", {}, run.verdict ?? "not finished"),
      make("td", {}, String(run.steps.at(-1) ?? 0)),
      make("td", {}, ...(run.served ? [make("a", { href: `/?model=${encodeURIComponent(run.served)}` }, "chat with it")] : ["not served"])),
    ));
  const head = make("tr", {}, ...["Run", "Verdict", "Newest checkpoint", "Chat"].map((t) => make("th", { scope: "col" }, t)));
  at("runs").replaceChildren(wide("Runs", make("table", {}, head, ...rows)));
  if (!state.shown && runs.length) await open((runs.find((run) => run.served) ?? runs[0]).name);
}

async function open(name) {
  state.shown = name;
  const run = await call("GET", `/studio/runs/${encodeURIComponent(name)}`);
  if (state.shown !== name) return;
  draw(run);
  if (!run.verdict) setTimeout(() => state.shown === name && open(name).catch(() => {}), EVERY_MS);
}

// A look that found nothing new leaves the page as it is, with what is open, focused or selected.
function draw(run) {
  const told = JSON.stringify(run);
  if (told === state.drawn) return;
  state.drawn = told;
  const isOpen = at("run").querySelector("details")?.open ?? false;
  at("run").replaceChildren(
    make("h2", { tabIndex: -1 }, run.name),
    make("p", {}, run.headline ?? "This run has no report yet; it is training, or was stopped."),
    ...curves(run), ...checks(run), ...plan(run, isOpen), ...watched(run), ...samples(run),
  );
}

// On a narrow screen a table moves inside its own frame.
function wide(name, table) {
  return make("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: name }, table);
}

function curves(run) {
  if (run.loss.length < 2) return [];
  const figure = make("figure", {}, plot(run.loss, run.validation));
  figure.append(make("figcaption", { className: "who" }, "Loss in nats a target token by step: training (line), validation (dashed)."));
  return [figure];
}

// One axis for both, from the lowest loss to the highest.
function plot(loss, validation) {
  const [width, height, pad] = [640, 220, 36];
  const all = [...loss, ...validation];
  const steps = all.map(([x]) => x);
  const values = all.map(([, y]) => y);
  const [x0, x1, y0, y1] = [Math.min(...steps), Math.max(...steps), Math.min(...values), Math.max(...values)];
  const place = ([x, y]) => [
    pad + ((x - x0) / (x1 - x0 || 1)) * (width - 2 * pad),
    height - pad + ((y0 - y) / (y1 - y0 || 1)) * (height - 2 * pad),
  ];
  const svg = shape("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.setAttribute("aria-label", `loss from ${loss[0][1].toFixed(2)} to ${loss.at(-1)[1].toFixed(2)} over ${x1} steps`);
  svg.append(shape("polyline", { points: loss.map(place).join(" ") }));
  if (validation.length > 1) svg.append(shape("polyline", { class: "second", points: validation.map(place).join(" ") }));
  const words = [[4, pad, y1.toFixed(2)], [4, height - pad, y0.toFixed(2)], [pad, height - 12, `step ${x0}`], [width - 80, height - 12, `step ${x1}`]];
  for (const [x, y, text] of words) {
    const node = shape("text", { x, y });
    node.textContent = text;
    svg.append(node);
  }
  return svg;
}

function shape(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function checks(run) {
  const found = run.report.checks ?? [];
  if (!found.length) return [];
  const rows = found.map((check) =>
    make("tr", {}, make("td", { className: check.passed ? "pass" : "fault" }, check.passed ? "✓" : "✗"), make("td", {}, check.name), make("td", {}, check.figure)));
  const report = make("a", { href: `/studio/runs/${encodeURIComponent(run.name)}/report`, target: "_blank", rel: "noopener" }, "the whole report");
  return [make("h3", {}, "Six checks"), wide("Checks", make("table", {}, ...rows)), make("p", {}, report)];
}

function plan(run, isOpen) {
  const names = Object.keys(run.plan);
  if (!names.length) return [];
  const rows = names.map((name) =>
    make("tr", {}, make("td", {}, name), make("td", { className: "number" }, String(run.plan[name].value)), make("td", {}, run.plan[name].rule)));
  const summary = make("summary", {}, "Plan: every number with its reason");
  return [make("details", { open: isOpen }, summary, wide("Plan", make("table", {}, ...rows)))];
}

function watched(run) {
  if (!run.watched.length) return [];
  const tables = run.watched.map((one) => {
    const rows = one.answers.map(([step, text]) =>
      make("tr", {}, make("td", { className: "number" }, String(step)), make("td", {}, text)));
    const head = make("tr", {}, ...["Step", "Answer"].map((t) => make("th", { scope: "col" }, t)));
    const caption = make("caption", {}, one.question, make("span", { className: "who" }, ` (${one.reference})`));
    return wide(one.question, make("table", { className: "watched" }, caption, head, ...rows));
  });
  return [make("h3", {}, "Watched answers"), ...tables];
}

function samples(run) {
  const answers = run.report.samples ?? [];
  const rows = answers.slice(0, 20).map((s) =>
    make("tr", {}, ...[s.question, s.before, s.after, s.reference].map((text) => make("td", {}, text))));
  if (!rows.length) return [];
  const head = make("tr", {}, ...["Question", "Before", "After", "Reference"].map((t) => make("th", { scope: "col" }, t)));
  return [make("h3", {}, "Answers before and after"), wide("Answers before and after", make("table", {}, head, ...rows))];
}

attempt(list);
