// The view. Typed and generated text only ever becomes text nodes; the worker computes.
"use strict";

const $ = (id) => document.getElementById(id), data = JSON.parse($("data").textContent);
const lines = $("words").textContent.trim().split("\n").map((line) => line.split(/\s*\|\s*/));
const WORDS = new Map(lines.map(([key, ...languages]) => [key, languages]));
const SLIDERS = { // min, max, step, initial value
  temperature: [0, 2, 0.05, 0.7], top_p: [0.05, 1, 0.05, 0.9], top_k: [0, 100, 1, 0], most: [16, 1024, 16, 512] };
let chinese = /^zh/.test(navigator.language), about, off = { ahead: false, positions: false, layers: [], heads: [] };
let turns = [], source, seen, chosen, picked, accounted; // source: the inspected ids or text; picked: [layer, head]

const say = (key, values) => WORDS.get(key)[chinese ? 1 : 0].replace(/\{(\w+)\}/g, (_, name) => values[name]);
const hex = (bytes) => bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");

function make(tag, fields, ...inside) {
  const node = Object.assign(document.createElement(tag), fields);
  node.append(...inside);
  return node;
}

/** 1234567 -> "1.23 M". */
function short(n) {
  const [size, unit] = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => n >= size) ?? [1, ""];
  return `${+(n / size).toPrecision(3)} ${unit}`;
}

/** A printable form of a token: visible white space, parts of characters as bytes. */
function label(bytes) {
  const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
  if (text.includes("\ufffd")) return `[${hex(bytes)}]`;
  return text.replace(/\n/g, "↵").replace(/ /g, "·").replace(/\p{C}/gu, "□");
}

// ---- the worker
const worker = new Worker(URL.createObjectURL(new Blob([$("worker").textContent], { type: "text/javascript" })));
const waiting = new Map();
let asked = 0, queue = Promise.resolve();
worker.onmessage = ({ data: answer }) => waiting.get(answer.id)(answer);
worker.onerror = ({ message }) => fail(message);

function post(question, onPart) {
  return new Promise((resolve, reject) => {
    waiting.set(++asked, (answer) => (answer.done ? resolve : "error" in answer ? reject : onPart)(answer));
    worker.postMessage({ id: asked, ...question });
  });
}

/** Run one long request at a time; the running one is stopped. */
function ask(question, onPart) {
  post({ ask: "stop" });
  const answer = queue.then(() => post(question, onPart));
  queue = answer.catch(() => {});
  return answer;
}

function fail(error) {
  const { tooLong, error: words = error } = error;
  $("status").textContent = tooLong ? say("tooLong", tooLong) : say("failed", { error: words });
}

// ---- the chat
/** Show an answer in its box, with the text between <think> and </think> folded. */
function fill({ content, fold, words }, running) {
  const [, thought, rest] = /^\s*<think>([^]*?)(?:<\/think>([^]*))?$/.exec(content) ?? [];
  fold.hidden = thought === undefined;
  words.textContent = fold.hidden ? content : (rest ?? "").replace(/<\/?answer>/g, "").trim();
  if (fold.hidden) return;
  fold.firstChild.textContent = say(running && rest === undefined ? "thinking" : "thought", { n: [...thought].length });
  fold.lastChild.textContent = thought.trim();
}

function addTurn(role, content) {
  const fold = make("details", {}, make("summary"), make("div")), words = make("div"), note = make("p");
  const turn = { role, content, fold, words, note, box: make("div", { className: `turn ${role}` }, fold, words, note) };
  $("turns").append(turn.box);
  turns.push(turn);
  fill(turn);
  $("turns").scrollTop = $("turns").scrollHeight;
  return turn;
}

async function answer() {
  const messages = turns.map(({ role, content }) => ({ role, content })), { name } = about;
  const turn = addTurn("assistant", ""), isLast = () => turns.at(-1) === turn; // not after "new chat"
  const { most, ...sampling } = Object.fromEntries(Object.keys(SLIDERS).map((key) => [key, Number($(key).value)]));
  $("status").textContent = say("working");
  busy(true);
  try {
    const done = await (data.served ? askServer : ask)({ ask: "answer", messages, sampling, most, off }, (part) => {
      const { scrollHeight, scrollTop, clientHeight } = $("turns");
      turn.content += part.text;
      fill(turn, true);
      tell(part);
      if (scrollHeight - scrollTop - clientHeight < 40) $("turns").scrollTop = $("turns").scrollHeight;
    });
    turn.content += done.text;
    fill(turn);
    turn.note.textContent = say("told", { ...done, name, why: say(done.why), speed: done.speed.toFixed(0) });
    $("status").textContent = "";
    if (isLast()) look({ ids: done.ids, prompt: done.prompt });
  } catch (error) {
    if (isLast()) turns.pop().box.remove();
    fail(error);
  }
  if (isLast() || !turns.length) busy(false);
}

function busy(running) {
  $("stop").disabled = !running;
  $("send").disabled = running || !about;
  $("retry").disabled = running || !about || !turns.length;
  $("try").hidden = turns.length;
}

function send() {
  const question = $("question").value;
  if (!question.trim() || $("send").disabled) return;
  if (!about.chats) clear();
  $("question").value = "";
  addTurn("user", question);
  answer();
}

function clear() {
  halt();
  turns = [];
  $("turns").replaceChildren();
  busy(false);
}

// ---- looking inside
async function look(what = source) {
  source = what;
  if (!source || !about) return;
  try {
    const found = await ask({ ask: "look", ...source, off });
    if (found.stopped) return; // a newer request is running
    seen = { ...found, prompt: what.prompt };
    chosen = Math.min(chosen ?? Infinity, seen.tokens.length - 1);
    const choice = (at) => () => { chosen = at; inspect(); };
    const nodes = seen.tokens.map(({ bytes }, at) => make("button", { onclick: choice(at) }, label(bytes)));
    $("tokens").replaceChildren(...nodes);
    tell(seen);
    inspect();
  } catch (error) { fail(error); }
}

/** Show the predictions after the chosen token, layer by layer, and the attention of the picked head. */
async function inspect() {
  if (!seen) return;
  const lens = post({ ask: "lens", position: chosen, count: 5 }), [layer, head] = picked ?? [];
  const attention = picked ? post({ ask: "attention", layer, head }) : {};
  const { layers } = await lens, { map } = await attention;
  if (!seen) return; // another stage was loaded meanwhile
  const cell = ({ bytes, p }) => make("td", {}, label(bytes), make("i", {}, ` ${short(+(100 * p).toFixed(1))}%`));
  const line = (best, l) => make("tr", {}, make("th", {}, say(l ? "layer" : "embedding", { l })), ...best.map(cell));
  $("lens").replaceChildren(make("tr", {}, make("th", { colSpan: 6 }, say("next"))), ...layers.map(line).reverse());
  draw(map);
}

/** Color the tokens by their loss, or by the attention weights of the picked head (map: T x T). */
function draw(map) {
  const { tokens, cut } = seen, T = tokens.length, { bytes, id, loss } = tokens[chosen], from = seen.prompt ?? 1;
  const mean = tokens.slice(from).reduce((sum, token) => sum + token.loss, 0) / Math.max(T - from, 1);
  const of = say(seen.prompt ? "answer" : "whole"), more = cut ? say("cut", { cut }) : "";
  $("found").textContent = say("found", { n: T, cut: more, mean: mean.toFixed(2), of });
  $("token").textContent = say("token", { at: chosen, id, hex: hex(bytes), loss: loss?.toFixed(2) ?? "–" });
  [...$("tokens").children].forEach((node, at) => {
    const strength = map ? Math.sqrt(map[chosen * T + at]) : Math.min(tokens[at].loss / 8, 1);
    node.style.background = `rgb(var(${map ? "--blue" : "--red"}) / ${0.85 * strength})`;
    node.ariaPressed = at === chosen;
  });
  if ($("map").hidden = !map) return;
  const image = new ImageData(T, T), blue = getComputedStyle(document.body).getPropertyValue("--blue").split(" ");
  map.forEach((weight, i) => image.data.set([...blue, 255 * Math.sqrt(weight)], 4 * i));
  $("map").width = $("map").height = T;
  $("map").getContext("2d").putImageData(image, 0, 0);
}

function tell(found = accounted) {
  accounted = found;
  const [cached, uncached] = found.flops.map(short), bytes = short(found.bytes);
  $("account").textContent = say("account", { positions: found.positions, bytes, cached, uncached });
}

/** Draw the grid of heads, and what is switched off. */
function drawSwitches() {
  const { n_layers, n_heads } = about.shape, same = (l, h) => picked?.[0] === l && picked[1] === h;
  $("heads").style.gridTemplateColumns = `repeat(${n_heads}, minmax(1.6rem, 2.5rem))`;
  $("heads").replaceChildren(...Array.from({ length: n_layers * n_heads }, (_, i) => {
    const l = Math.floor(i / n_heads), h = i % n_heads;
    const isOff = off.layers.includes(l) || off.heads.includes(`${l}.${h}`);
    const onclick = () => { picked = same(l, h) ? null : [l, h]; drawSwitches(); inspect(); };
    return make("button", { className: isOff ? "off" : "", ariaPressed: same(l, h), onclick }, `${l + 1}.${h + 1}`);
  }));
  $("picked").hidden = !picked;
  if (!picked) return;
  const [l, h] = picked;
  const turned = (list, one) => (list.includes(one) ? list.filter((other) => other !== one) : [...list, one]);
  for (const key of ["headOff", "layerOff"]) $(key).textContent = say(key, { l: l + 1, h: h + 1 });
  $("headOff").onclick = () => change({ heads: turned(off.heads, `${l}.${h}`) });
  $("layerOff").onclick = () => change({ layers: turned(off.layers, l) });
}

function change(switches) {
  off = { ...off, ...switches };
  drawSwitches();
  look();
}

// ---- stages, languages
async function load(index) {
  about = picked = seen = null;
  off = { ...off, layers: [], heads: [] };
  busy(false);
  $("stage").value = index;
  [...$("stages").children].forEach((node, i) => { node.ariaPressed = i === index; });
  try {
    await ask({ ask: "load", about: data.models[index], base64: $(`weights${index}`).textContent });
  } catch (error) { return fail(error); }
  if (Number($("stage").value) !== index) return; // another stage was chosen meanwhile
  about = data.models[index];
  busy(false);
  translate();
  look();
}

function translate() {
  document.documentElement.lang = chinese ? "zh" : "en";
  $("language").textContent = chinese ? "English" : "中文";
  document.querySelectorAll("[data-say]").forEach((node) => { node.textContent = say(node.dataset.say); });
  [$("own").placeholder, $("stage").ariaLabel] = [say("own"), say("stage")];
  turns.forEach((turn) => fill(turn));
  if (accounted) tell();
  if (!about) return;
  const { n_layers: layers, max_seq_len: context } = about.shape, parameters = short(about.parameters);
  $("question").placeholder = say(about.chats ? "chat" : "text");
  const asking = (words) => () => { $("question").value = words; send(); };
  $("try").replaceChildren(...about.questions.map((words) => make("button", { onclick: asking(words) }, words)));
  $("facts").textContent = say("facts", { ...about, parameters, layers, context });
  drawSwitches();
  inspect();
}

for (const [id, [min, max, step, value]] of Object.entries(SLIDERS)) {
  const shown = make("output", {}, String(value)), words = make("label", { htmlFor: id });
  const oninput = ({ target }) => { shown.value = target.value; };
  words.dataset.say = id;
  $("sliders").append(words, make("input", { type: "range", id, min, max, step, value, oninput }), shown);
}
$("stages").append(...data.models.map(({ name }, index) => make("button", { onclick: () => load(index) }, name)));
$("stage").max = data.models.length - 1;
$("road").hidden = data.models.length < 2;
$("stage").onchange = () => load(Number($("stage").value));
$("send").onclick = send;
$("stop").onclick = halt;
$("retry").onclick = () => { if (turns.at(-1).role === "assistant") turns.pop().box.remove(); answer(); };
$("clear").onclick = clear;
$("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
};
$("read").onclick = () => { chosen = undefined; look({ text: $("own").value }); };
for (const id of ["ahead", "positions"]) $(id).onchange = () => change({ [id]: $(id).checked });
$("language").onclick = () => { chinese = !chinese; translate(); };
post({ ask: "setup", data: data.tokenizer });
translate();
load(data.models.length - 1);
