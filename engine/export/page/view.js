// The view. Typed and generated text only ever becomes text nodes; the worker computes.
"use strict";

const $ = (id) => document.getElementById(id);
const lines = $("words").textContent.trim().split("\n").map((line) => line.split(/\s*\|\s*/));
const WORDS = new Map(lines.map(([key, ...languages]) => [key, languages]));
let data = JSON.parse($("data").textContent), about, loading = -1; // the model; the index of the next
let chinese = /^zh/.test(navigator.language), off = { ahead: false, positions: false, layers: [], heads: [] };
let source, seen, chosen, picked, accounted; // source: the inspected ids or text; picked: [layer, head]

/** The words of a key in the chosen language; a served page has words of its own for some. */
function say(key, values) {
  const languages = (data.served && WORDS.get(`${key}Served`)) || WORDS.get(key);
  return languages[chinese ? 1 : 0].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

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
worker.onerror = ({ message }) => waiting.forEach((settle) => settle({ error: message }));

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
  const { tooLong, error: words = error.message } = error;
  $("status").textContent = tooLong ? say("tooLong", tooLong) : say("failed", { error: words });
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
    const fields = { className: isOff ? "off" : "", ariaPressed: same(l, h), onclick };
    return make("button", { ...fields, ariaLabel: say("head", { l: l + 1, h: h + 1 }) }, `${l + 1}.${h + 1}`);
  }));
  $("switches").hidden = data.served; // they change what the worker computes, not the server's answers
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
/** Show the models that the page has; one that its server sent without them asks for the key first. */
async function begin() {
  loading = -1;
  refresh();
  try {
    if (!data.models) data = await unlock();
  } catch (error) {
    loading = null;
    refresh();
    return fail(error);
  }
  $("status").textContent = "";
  $("stages").append(...data.models.map(({ name }, index) => make("button", { onclick: () => load(index) }, name)));
  $("stage").max = data.models.length - 1;
  $("road").hidden = data.models.length < 2;
  post({ ask: "setup", data: data.tokenizer }).catch(fail);
  load(data.models.length - 1);
}

async function load(index) {
  about = picked = seen = null;
  loading = index;
  off = { ...off, layers: [], heads: [] };
  refresh();
  $("stage").value = index;
  [...$("stages").children].forEach((node, i) => { node.ariaPressed = i === index; });
  try {
    await ask({ ask: "load", about: data.models[index], base64: $(`weights${index}`).textContent });
    if (loading === index) about = data.models[index]; // no other stage was chosen meanwhile
  } catch (error) { fail(error); }
  if (loading === index) loading = null;
  refresh();
  if (!about) return;
  translate();
  look();
}

function translate() {
  document.documentElement.lang = chinese ? "zh" : "en";
  $("language").textContent = chinese ? "English" : "中文";
  document.querySelectorAll("[data-say]").forEach((node) => { node.textContent = say(node.dataset.say); });
  document.querySelectorAll("[data-label]").forEach((node) => { node.ariaLabel = say(node.dataset.label); });
  $("own").placeholder = say("own");
  turns.forEach((turn) => fill(turn));
  if (accounted) tell();
  if (!about) return;
  const { n_layers: layers, max_seq_len: context } = about.shape, parameters = short(about.parameters);
  $("question").placeholder = $("question").ariaLabel = say(about.chats ? "chat" : "text");
  const asking = (words) => () => { $("question").value = words; send(); };
  $("try").replaceChildren(...about.questions.map((words) => make("button", { onclick: asking(words) }, words)));
  $("facts").textContent = say("facts", { ...about, parameters, layers, context });
  drawSwitches();
  inspect();
}
