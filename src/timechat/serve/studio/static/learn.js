// Learning from the corrections: begin, watch, compare, switch, go back. What is shown is read from
// the run's folder by the server, so a page that was closed finds everything again.

import { call } from "./api.js";
import { at, attempt, button, make } from "./dom.js";

const EVERY_MS = 1000;
const WORDS = {
  learned: "learned", not_learned: "not learned", kept: "kept", lost: "lost",
  undecided: "cannot be told", too_few: "too few questions to tell",
};
const state = { model: "", timer: 0 };

async function look() {
  clearTimeout(state.timer);
  const model = (state.model = at("model").value);
  if (!model) return;
  let told;
  try {
    told = await call("GET", `/studio/learn?model=${encodeURIComponent(model)}`);
  } catch (error) {
    // A model that is no run has nothing to learn from; anything else is said where it can be read.
    at("learning").hidden = /is no run/.test(error.message);
    if (!at("learning").hidden) tell(error.message, true);
    return;
  }
  if (state.model === model) show(told);
}

function show(told) {
  at("learning").hidden = false;
  const { running, progress, fault } = told.state;
  const one = told.corrections === 1;
  at("learn-what").textContent = told.corrections
    ? `${told.corrections} correction${one ? "" : "s"} of ${told.run} stand${one ? "s" : ""}. ${answering(told)}`
    : `Nothing is corrected yet. Correct an answer on the Chat page, or judge one above. ${answering(told)}`;
  drawActions(told, running);
  at("learn-now").hidden = !running;
  if (running) drawProgress(progress);
  if (fault) tell(fault, true);
  at("learn-result").replaceChildren(...[...told.versions].reverse().map((v, i) => drawVersion(v, told, i === 0)));
  if (running) state.timer = setTimeout(() => attempt(look), EVERY_MS);
}

function answering(told) {
  return told.in_use ? `Version ${told.in_use} answers.` : "The run answers as it was trained.";
}

function drawActions(told, running) {
  const focused = document.activeElement?.dataset?.act;
  const row = [];
  const add = (act, label, title, className) => {
    const node = button(label, () => step(act), title, className);
    node.dataset.act = act;
    row.push(node);
  };
  if (running) add("stop", "Stop", "Stop learning; it goes on from there when you learn again", "");
  else if (told.corrections) add("start", "Learn from them", "Make a new version and compare it", told.offered ? "" : "main");
  if (told.offered && !running) add("switch", `Switch to version ${told.offered}`, "Let the new version answer", "main");
  if (told.in_use && !running) add("back", "Back to the version before", "Answer as before", "");
  at("learn-actions").replaceChildren(...row);
  if (focused) (row.find((node) => node.dataset.act === focused) ?? row[0])?.focus();
}

function drawProgress(progress) {
  const { doing = "beginning", done = 0, of = 0, loss } = progress ?? {};
  const count = of ? ` ${done} of ${of}` : "";
  at("learn-doing").textContent = `${doing}${count}${loss === undefined ? "" : `, loss ${loss.toFixed(2)}`}`;
  at("learn-bar").max = of || 1;
  at("learn-bar").value = done;
}

async function step(action) {
  tell({ start: "Beginning.", stop: "Stopping.", switch: "Loading the new version.", back: "Loading the version before." }[action]);
  const begun = performance.now();
  try {
    const told = await call("POST", "/studio/learn", { model: at("model").value, action });
    const seconds = ((performance.now() - begun) / 1000).toFixed(0);
    tell({
      start: "Learning. The model in use goes on answering.",
      stop: "Stopped; learning again goes on from there.",
      switch: `The new version answers now (${seconds} s).`,
      back: `The version before answers again (${seconds} s).`,
    }[action]);
    show(told);
    if (action === "stop") state.timer = setTimeout(() => attempt(look), EVERY_MS);
  } catch (error) {
    tell(error.message, true);
  }
}

function tell(text, isFault = false) {
  at("learn-status").textContent = text;
  at("learn-status").classList.toggle("fault", isFault);
}

function drawVersion(version, told, isNewest) {
  const node = make("details", { className: "card version", open: isNewest });
  const using = version.number === told.in_use ? ", answers now" : "";
  node.append(make("summary", {}, `Version ${version.number}: ${version.decision === "offered" ? "offered" : "not offered"}${using}`));
  if (version.decision === "offered") node.append(make("p", { className: "pass" }, "It learned what it was told, and no loss of anything else was shown."));
  else node.append(make("p", {}, "The model in use stays:"), make("ul", {}, ...version.reasons.map((r) => make("li", {}, r))));
  node.append(drawSets(version.sets), ...drawSamples(version.samples));
  if (version.seconds) node.append(make("p", { className: "who" }, `Took ${Math.round(version.seconds)} s.`));
  return node;
}

function drawSets(sets) {
  const cells = (texts) => texts.map((text, i) => make("td", { className: i && i < 4 ? "number" : "" }, text));
  const rows = Object.entries(sets).map(([name, set]) => {
    if (name === "corrections") {
      const made = set.made_by_rule ? ` (${set.made_by_rule} of ${set.questions} questions reworded by a rule)` : "";
      return make("tr", {}, ...cells([`Corrections in other words${made}`, `${set.right_before} of ${set.n}`, `${set.right_after} of ${set.n}`, "", WORDS[set.verdict]]));
    }
    const since = name.endsWith("_since_trained") ? ", since the run was trained" : "";
    const title = `${set.name[0].toUpperCase()}${set.name.slice(1)}${since} (${set.n} questions)`;
    const reach = set.ci95.every(Number.isFinite) ? ` [${points(set.ci95[0])}, ${points(set.ci95[1])}]` : "";
    return make("tr", {}, ...cells([title, percent(set.before), percent(set.after), `${points(set.difference)}${reach}`, WORDS[set.verdict] ?? set.verdict]));
  });
  const head = make("tr", {}, ...["Asked", "Before", "Now", "Points [95 %]", "Verdict"].map((t) => make("th", { scope: "col" }, t)));
  return make("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: "What was asked" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function drawSamples(samples) {
  if (!samples.length) return [];
  const mark = (right) => make("span", { className: right ? "pass" : "fault" }, right ? "✓ " : "✗ ");
  const rows = samples.map((s) =>
    make("tr", {}, make("td", {}, s.question), make("td", {}, mark(s.right_before), s.before), make("td", {}, mark(s.right_after), s.after), make("td", {}, s.reference)));
  const head = make("tr", {}, ...["Asked in other words", "Before", "Now", "The correction"].map((t) => make("th", { scope: "col" }, t)));
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  return [make("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: "Answers in other words" }, table)];
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const points = (share) => `${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(1)}`;

at("model").addEventListener("models", () => attempt(look));
at("model").addEventListener("change", () => {
  tell("");
  attempt(look);
});
document.addEventListener("judged", () => attempt(look));
