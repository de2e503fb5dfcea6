// The chat page. A conversation is a list of turns; an assistant's turn holds one answer, or two
// when models stand side by side, of which the `kept` one goes on into the history.

import { answer, call } from "./api.js";
import { at, attempt, button, make, say } from "./dom.js";
import { render } from "./markdown.js";

const state = { models: [], conversation: fresh(), running: null };

function fresh() {
  return { id: crypto.randomUUID(), title: "", system: "", turns: [] };
}

// ---- models

async function loadModels() {
  state.models = (await call("GET", "/studio/models")).models;
  for (const id of ["model", "second"]) {
    const chosen = at(id).value;
    at(id).replaceChildren(...state.models.map((m) => new Option(m.name, m.name)));
    if (state.models.some((m) => m.name === chosen)) at(id).value = chosen;
  }
  const asked = new URLSearchParams(location.search).get("model");
  if (asked && state.models.some((m) => m.name === asked)) at("model").value = asked;
  if (state.models.length > 1 && at("second").value === at("model").value) at("second").selectedIndex = 1;
  showSteps();
}

// The slider runs over the checkpoints of the chosen model's run; its right end is the best one.
function showSteps() {
  const steps = chosen().steps ?? [];
  at("step-label").hidden = steps.length === 0;
  at("step").max = steps.length;
  at("step").value = steps.length;
  nameStep();
}

function chosen() {
  return state.models.find((m) => m.name === at("model").value) ?? {};
}

function chosenStep() {
  return (chosen().steps ?? [])[Number(at("step").value)];
}

function nameStep() {
  const step = chosenStep();
  at("step-name").value = step === undefined ? "best" : String(step);
}

// A checkpoint is loaded when it is first asked for. Whoever is quicker than the list of models waits for it.
async function modelNames() {
  if (!chosen().name) await loadModels();
  if (!chosen().name) throw new Error("No model is served here.");
  const step = chosenStep();
  const names = [chosen().name];
  if (step !== undefined) {
    say(`loading ${chosen().name} as it was at step ${step}`);
    names[0] = (await call("POST", "/studio/models", { model: chosen().name, step })).name;
  }
  if (!at("beside").checked) return names;
  names.push(at("second").value);
  return at("blind").checked && Math.random() < 0.5 ? names.reverse() : names;
}

// ---- asking

async function send(words) {
  if (state.running) interrupt();
  const conversation = state.conversation;
  conversation.title ||= words.slice(0, 80);
  conversation.system = at("system").value;
  conversation.turns.push({ role: "user", content: words });
  await reply(conversation);
}

async function reply(conversation) {
  const run = { abort: new AbortController() };
  state.running = run;
  busy(true);
  try {
    const names = await modelNames();
    const blind = at("blind").checked && names.length > 1;
    const turn = { role: "assistant", kept: 0, blind, answers: names.map((model) => ({ model, content: "" })) };
    const messages = history(conversation);
    conversation.turns.push(turn);
    draw();
    await Promise.all(turn.answers.map((one, i) => stream(one, messages, run, views(turn)[i])));
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  } finally {
    if (state.running === run) {
      state.running = null;
      busy(false);
    }
    if (state.conversation === conversation) draw();
    // What was pressed may have been drawn anew: whoever works by keyboard goes on at the message box.
    if (document.activeElement === document.body) at("words").focus();
    await save(conversation);
  }
}

// What was delivered is what the model will remember: no more, when it was stopped.
async function stream(one, messages, run, view) {
  const begun = performance.now();
  let frame = 0;
  try {
    for await (const part of answer({ model: one.model, messages }, run.abort.signal)) {
      if (part.notice) say(part.notice);
      if (part.text) {
        one.ttft_ms ??= Math.round(performance.now() - begun);
        one.content += part.text;
        cancelAnimationFrame(frame);
        frame = requestAnimationFrame(() => show(view, one));
      }
      if (part.usage) {
        const seconds = (performance.now() - begun - (one.ttft_ms ?? 0)) / 1000;
        one.tokens = part.usage.completion_tokens;
        one.tokens_per_second = seconds > 0 ? Number((one.tokens / seconds).toFixed(1)) : null;
        one.finish = part.finish;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") one.fault = error.message;
    one.finish = "stopped";
  } finally {
    cancelAnimationFrame(frame);
  }
}

function history(conversation) {
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  for (const turn of conversation.turns) {
    const content = turn.role === "user" ? turn.content : turn.answers[turn.kept].content;
    if (content) messages.push({ role: turn.role, content });
  }
  return messages;
}

function interrupt() {
  state.running?.abort.abort();
  state.running = null;
}

function again(index) {
  interrupt();
  state.conversation.turns.length = index;
  return reply(state.conversation);
}

function edit(index) {
  interrupt();
  at("words").value = state.conversation.turns[index].content;
  state.conversation.turns.length = index;
  draw();
  at("words").focus();
}

// ---- drawing

function draw() {
  at("talk").replaceChildren(...state.conversation.turns.map(drawTurn));
  at("talk").scrollTop = at("talk").scrollHeight;
  document.title = `${state.conversation.title || "Chat"} · TimeChat`;
}

function drawTurn(turn, index) {
  if (turn.role === "user") {
    const node = make("article", { className: "turn user", ariaLabel: "You" }, turn.content);
    const again = button("Edit", () => edit(index), "Edit this message and ask again");
    return make("div", { className: "turn-row" }, node, again);
  }
  const answers = turn.answers.map((one, i) => drawAnswer(turn, one, i, index));
  return make("div", { className: "answers" }, ...answers);
}

function drawAnswer(turn, one, i, index) {
  const name = turn.blind ? `Answer ${"AB"[i]}` : one.model;
  const words = make("div", { className: "words" });
  const facts = make("p", { className: "facts" });
  const node = make("article", { className: "turn", ariaLabel: name }, make("p", { className: "who" }, name), words, facts);
  show(node, one);
  if (one.finish) node.append(actions(turn, one, i, index));
  return node;
}

function show(node, one) {
  const words = node.querySelector(".words");
  words.replaceChildren(render(one.content));
  words.classList.toggle("waiting", !one.finish);
  // A screen reader is told the answer once, when it is there.
  node.ariaBusy = String(!one.finish);
  const facts = [];
  if (one.ttft_ms !== undefined) facts.push(`first word ${one.ttft_ms} ms`);
  if (one.tokens_per_second) facts.push(`${one.tokens_per_second} tokens/s`);
  if (one.finish === "stopped") facts.push("stopped");
  if (one.finish === "length") facts.push("cut at the longest length");
  if (one.fault) facts.push(one.fault);
  node.querySelector(".facts").textContent = facts.join(" · ");
  node.querySelector(".facts").classList.toggle("fault", Boolean(one.fault));
}

function actions(turn, one, i, index) {
  const row = make("div", { className: "actions" });
  if (turn.answers.length > 1) {
    row.append(button(turn.picked === i ? "Better (chosen)" : "This one is better", () => choose(turn, i, index)));
  }
  row.append(
    button("Good", () => judge(one, index, "good"), "This answer is good"),
    button("Bad", () => judge(one, index, "bad"), "This answer is bad"),
    button("Correct", () => correct(one, index), "Write a better answer"),
    button("Copy", () => navigator.clipboard.writeText(one.content)),
  );
  if (index === state.conversation.turns.length - 1) row.append(button("Again", () => again(index), "Answer again"));
  return row;
}

function views(turn) {
  return at("talk").children[state.conversation.turns.indexOf(turn)].children;
}

function busy(on) {
  at("stop").hidden = !on;
  if (on) say("");
}

// ---- corrections

async function judge(one, index, verdict, value = null, others = [], fact = "") {
  const conversation = state.conversation;
  const prompt = history({ ...conversation, turns: conversation.turns.slice(0, index) });
  await call("POST", "/studio/corrections", {
    conversation: conversation.id, model: one.model, prompt, answer: one.content, verdict, value, others, fact,
  });
  say(verdict === "correct" ? "Saved. On the Corrections page the model can learn from it." : "Noted.");
}

function correct(one, index) {
  const question = state.conversation.turns[index - 1]?.content ?? "";
  at("correct-question").textContent = question;
  at("better").value = one.content;
  at("others").value = at("fact").value = "";
  at("correct").onclose = () => {
    if (at("correct").returnValue !== "save") return;
    const others = at("others").value.split("\n").map((s) => s.trim()).filter(Boolean);
    attempt(() => judge(one, index, "correct", at("better").value.trim(), others, at("fact").value.trim()));
  };
  at("correct").returnValue = "";
  at("correct").showModal();
}

async function choose(turn, i, index) {
  turn.kept = turn.picked = i;
  turn.blind = false;
  const prompt = history({ ...state.conversation, turns: state.conversation.turns.slice(0, index) });
  const answers = turn.answers.map((one) => one.content);
  const origins = turn.answers.map((one) => one.model);
  const model = turn.answers[i].model;
  await call("POST", "/studio/picks", {
    conversation: state.conversation.id, model, prompt, answers, origins, picked: i,
  });
  draw();
  await save(state.conversation);
  say("Noted; this answer goes on into the conversation.");
}

// ---- kept conversations

async function save(conversation) {
  if (!conversation.turns.length) return;
  try {
    await call("PUT", `/studio/conversations/${conversation.id}`, {
      title: conversation.title, system: conversation.system, turns: conversation.turns,
    });
    await list();
  } catch (error) {
    say(`not kept: ${error.message}`, true);
  }
}

async function list() {
  const query = encodeURIComponent(at("search").value);
  const { conversations } = await call("GET", `/studio/conversations?query=${query}`);
  at("conversations").replaceChildren(...conversations.map(drawEntry));
}

function drawEntry(entry) {
  const open = make("button", { type: "button", className: "open" }, entry.title || "untitled");
  if (entry.id === state.conversation.id) open.setAttribute("aria-current", "true");
  open.addEventListener("click", () => attempt(() => openConversation(entry.id)));
  const save = make("a", { href: `/studio/conversations/${entry.id}/export`, download: "", title: "Export as a training row" }, "⤓");
  save.setAttribute("aria-label", `Export ${entry.title}`);
  const remove = button("✕", () => removeConversation(entry), "Delete");
  remove.setAttribute("aria-label", `Delete ${entry.title}`);
  return make("li", {}, open, save, remove);
}

async function openConversation(id) {
  interrupt();
  state.conversation = await call("GET", `/studio/conversations/${id}`);
  at("system").value = state.conversation.system;
  draw();
  await list();
  showSide(false);
  at("words").focus();
}

async function removeConversation(entry) {
  if (!confirm(`Delete “${entry.title}”? This cannot be undone.`)) return;
  await call("DELETE", `/studio/conversations/${entry.id}`);
  if (entry.id === state.conversation.id) startNew();
  await list();
}

function startNew() {
  interrupt();
  state.conversation = fresh();
  at("system").value = "";
  draw();
  attempt(list);
  showSide(false);
  at("words").focus();
}

// On a phone the list lies over the talk.
function showSide(on) {
  at("side").classList.toggle("shown", on);
  at("menu").setAttribute("aria-expanded", String(on));
}

// ---- wiring

at("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = at("words").value.trim();
  if (!words) return;
  at("words").value = "";
  send(words);
});
at("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("compose").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.running && !at("correct").open) interrupt();
});
at("stop").addEventListener("click", interrupt);
at("new").addEventListener("click", startNew);
at("model").addEventListener("change", showSteps);
at("step").addEventListener("input", nameStep);
at("beside").addEventListener("change", () => {
  at("second-label").hidden = at("blind-label").hidden = !at("beside").checked;
});
at("search").addEventListener("input", () => {
  clearTimeout(state.searching);
  state.searching = setTimeout(() => attempt(list), 200);
});
at("menu").addEventListener("click", () => showSide(!at("side").classList.contains("shown")));
at("setup").addEventListener("submit", (event) => event.preventDefault());

attempt(() => loadModels().then(list));
