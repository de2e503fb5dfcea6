// The queue's page: one thing at a time, by mouse or by keys.

import { call } from "./api.js";
import { at, attempt, button, make, say } from "./dom.js";
import { render } from "./markdown.js";

const state = { item: null, labels: [], ticks: [], begun: 0 };

const CHOICES = {
  judge: [["Right", "right"], ["Correct it", "corrected"], ["Wrong", "wrong"]],
  choose: [["First is better", "first"], ["Second is better", "second"], ["Equally good", "tie"], ["Neither", "neither"]],
};

function person() {
  return { model: at("model").value, annotator: at("annotator").value.trim() };
}

async function ask(path, body = {}) {
  if (!person().annotator) {
    say("Say who judges: your name stands beside every judgement.");
    return;
  }
  show(await call("POST", `/studio/queue/${path}`, { ...person(), ...body }));
  say("");
  if (path !== "claim") {
    document.dispatchEvent(new Event("judged"));
    await showAgreement();
  }
}

function answer(verdict, value) {
  const seconds = (performance.now() - state.begun) / 1000;
  const body = { item: state.item.id, verdict, seconds: Number(seconds.toFixed(1)) };
  if (value !== undefined) body.value = value;
  if (state.item.task === "choose" && verdict !== "skip") {
    body.ticks = [...document.querySelectorAll("#ticks input:checked")].map((box) => box.value);
  }
  return ask("answer", body);
}

function show({ item, progress, labels, ticks }) {
  Object.assign(state, { item, labels, ticks, begun: performance.now() });
  at("progress").textContent =
    `${progress.finished} of ${progress.items} judged; ${progress.mine} by you, ${progress.left} left for you`;
  if (!item) {
    at("item").replaceChildren(make("p", {}, "Nothing is left to judge here."), ...undoRow());
    return;
  }
  at("item").replaceChildren(...drawPrompt(item), ...item.answers.map(drawAnswer), ...drawTicks(item), drawChoices(item), ...undoRow());
}

function drawPrompt(item) {
  return item.prompt.map((m) => make("p", { className: m.role === "user" ? "asked" : "who" }, m.role === "user" ? m.content : `${m.role}: ${m.content}`));
}

function drawAnswer(text, i) {
  const title = state.item.answers.length > 1 ? ["First answer", "Second answer"][i] : "Answer";
  return make("article", { className: "card words" }, make("h3", {}, title), render(text));
}

// What the better answer is better in, ticked before it is chosen; keys follow those of the buttons.
function drawTicks(item) {
  if (item.task !== "choose") return [];
  const first = CHOICES.choose.length + 1;
  const boxes = state.ticks.map((tick, i) => {
    const box = make("input", { type: "checkbox", value: tick });
    box.dataset.key = String(first + i);
    return make("label", {}, box, ` ${first + i} ${tick}`);
  });
  const legend = make("legend", {}, "The better answer is (tick what holds, then choose)");
  return [make("fieldset", { id: "ticks", className: "ticks" }, legend, ...boxes)];
}

function drawChoices(item) {
  const row = make("div", { className: "actions" });
  const choices = CHOICES[item.task].filter(([, verdict]) => item.answers.length || verdict === "corrected");
  choices.forEach(([label, verdict], i) => {
    row.append(button(`${i + 1} ${label}`, () => (verdict === "corrected" ? rewrite(item) : answer(verdict)), label, ""));
  });
  row.append(button("s Skip", () => answer("skip")));
  return row;
}

function rewrite(item) {
  const suggested = item.suggestions[0]?.value;
  const box = state.labels.length
    ? make("select", { id: "better" }, ...state.labels.map((label) => new Option(label, label)))
    : make("textarea", { id: "better", rows: 4, value: suggested ?? item.answers[0] ?? "" });
  const save = button("Save", () => answer("corrected", box.value.trim()), "Save", "main");
  const label = make("label", {}, "What should it have said?", box);
  const note = suggested ? [make("p", { className: "who" }, `suggested by ${item.suggestions[0].model}`)] : [];
  at("item").append(label, ...note, save);
  box.focus();
}

function undoRow() {
  return [button("u Undo", () => ask("undo"), "Take back the last judgement")];
}

async function showAgreement() {
  const found = await call("GET", `/studio/queue/agreement?model=${encodeURIComponent(at("model").value)}`);
  // With one judge, or nothing judged by two, a coefficient has no value.
  const agreement = found.agreement.filter((one) => one.value !== null);
  if (!agreement.length) {
    at("agreement").replaceChildren(make("p", { className: "who" }, "Shown once two people have judged the same things."));
    return;
  }
  const rows = agreement.map((one) => {
    const [low, high] = one.ci95 ?? [null, null];
    const interval = low === null ? "" : ` [${low.toFixed(2)}, ${high.toFixed(2)}]`;
    return make("tr", {}, make("td", {}, one.name), make("td", { className: "number" }, `${one.value.toFixed(2)}${interval}`), make("td", { className: "number" }, String(one.items ?? "")));
  });
  const head = make("tr", {}, make("th", {}, "Coefficient"), make("th", {}, "Value [95 %]"), make("th", {}, "Items"));
  at("agreement").replaceChildren(make("table", {}, head, ...rows));
}

document.addEventListener("keydown", (event) => {
  const isWriting = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) && event.target.type !== "checkbox";
  if (isWriting || event.ctrlKey || event.metaKey || event.altKey) return;
  const buttons = [...at("item").querySelectorAll("button")];
  const boxes = [...at("item").querySelectorAll("#ticks input")];
  const pressed = buttons.find((b) => b.textContent.startsWith(`${event.key} `)) ?? boxes.find((b) => b.dataset.key === event.key);
  if (pressed) {
    event.preventDefault();
    pressed.click();
  }
});
at("setup").addEventListener("submit", (event) => event.preventDefault());
at("annotator").addEventListener("change", () => {
  localStorage.setItem("annotator", at("annotator").value);
  attempt(() => ask("claim"));
});
at("model").addEventListener("change", () => attempt(() => ask("claim").then(showAgreement)));

async function begin() {
  const { models } = await call("GET", "/studio/models");
  at("model").replaceChildren(...models.map((m) => new Option(m.name, m.name)));
  const asked = new URLSearchParams(location.search).get("model");
  if (models.some((m) => m.name === asked)) at("model").value = asked;
  at("annotator").value = localStorage.getItem("annotator") ?? "";
  at("model").dispatchEvent(new Event("models"));
  await ask("claim");
  if (models.length) await showAgreement();
}

attempt(begin);
