// What is seen. Typed and generated words only ever become text nodes; all computing is asked of the worker.
"use strict";

const WORDS = Object.fromEntries(`
title|Talk to a language model inside this page|和装在这个网页里的语言模型聊天
intro|It computes in your browser; nothing you type leaves this page.|它在您的浏览器里计算，您输入的内容不会离开这个网页。
facts|{name}: {parameters}weights ({weights}), {layers} layers, context {context} tokens.|{name}：{parameters}个权重（{weights}），{layers} 层，上下文 {context} 个 token。
chat|Ask something|问点什么
text|A beginning to continue|写个开头，让它续写
own|Any text, to see how the model reads it|任意文字，看模型怎么读
send|Send|发送
stop|Stop|停止
retry|Retry|重试
clear|New chat|新对话
read|Read|读
sampling|Sampling|采样
temperature|temperature (0: greedy)|temperature（0：贪心）
top_p|top_p (1: off)|top_p（1：关闭）
top_k|top_k (0: off)|top_k（0：关闭）
most|longest answer, tokens|回答最长 token 数
working|Reading …|正在读……
thinking|Thinking … {n} characters|思考中……{n} 字
thought|Thoughts, {n} characters|思考过程，{n} 字
end||
stopped|Stopped. |已停止。
limit|Cut: the longest answer or the end of the context. |被截断：到了最长回答或上下文的末尾。
told|{name}: {why}{count} tokens, {speed} tokens/s; prompt {prompt} tokens, {cached} of them from the cache.|{name}：{why}{count} 个 token，每秒 {speed} 个；提示 {prompt} 个 token，其中 {cached} 个来自缓存。
tooLong|The question takes {tokens} tokens of a context of {context}: shorten it.|问题有 {tokens} 个 token，上下文只有 {context}：请缩短。
failed|Something went wrong: {error}|出错了：{error}
inside|Look inside|看看里面
nothing|Ask something or read a text, then tap a token.|先问点什么或读一段文字，再点一个 token。
found|{n} tokens ({cut} did not fit); {mean} nats per token {of}. Red: loss. Tap one.|{n} 个 token（{cut} 个放不下）；{of}平均每个 token {mean} nats。红色：损失。点一个看看。
answer|of the answer|回答
whole|of the text|全文
token|Position {at}, id {id}, bytes {hex}; loss {loss} nats.|位置 {at}，id {id}，字节 {hex}；损失 {loss} nats。
next|the next token, guessed after|在各层之后猜下一个 token
embedding|embedding|嵌入
layer|layer {l}|第 {l} 层
pick|Heads, a row per layer. Tap one: blue shows where it looks from the chosen token.|注意力头，每层一行。点一个：蓝色表示它从选中的 token 看向哪里。
headOff|Head {l}.{h} on or off|开关第 {l} 层第 {h} 个头
layerOff|Layer {l} on or off|开关第 {l} 层
ahead|may look ahead|允许偷看后文
positions|no positions|去掉位置
account|Cache: {positions} positions, {bytes}B. The last token: {cached}FLOPs; without a cache {anew}FLOPs.|缓存：{positions} 个位置，{bytes}B。最后一个 token：{cached}FLOPs；没有缓存要 {anew}FLOPs。
`.trim().split("\n").map((line) => line.split("|")).map(([key, ...words]) => [key, words]));
const $ = (id) => document.getElementById(id), data = JSON.parse($("data").textContent);
const SLIDERS = { temperature: [0, 1.5, 0.05, 0.7], top_p: [0.05, 1, 0.05, 0.9], top_k: [0, 100, 1, 0], most: [16, 1024, 16, 512] };
let chinese = /^zh/.test(navigator.language), about, off = { ahead: false, positions: false, layers: [], heads: [] };
let turns = [], source, seen, chosen, picked, map, accounted; // source: what is looked at; picked: [layer, head]

const say = (key, values) => WORDS[key][chinese ? 1 : 0].replace(/\{(\w+)\}/g, (_, name) => values[name]);
const hex = (bytes) => bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
const make = (tag, fields, ...inside) => { const node = Object.assign(document.createElement(tag), fields); node.append(...inside); return node; };

function short(n) {
  const [size, unit] = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => n >= size) ?? [1, ""];
  return `${+(n / size).toPrecision(3)} ${unit}`;
}

/** A token as it can be shown: white space visible, part of a character as its bytes. */
function label(bytes) {
  const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
  return text.includes("\ufffd") ? `[${hex(bytes)}]` : text.replace(/\n/g, "↵").replace(/ /g, "·").replace(/\p{C}/gu, "□");
}

// ---------------------------------------------------------------------------------------------------- the worker

const worker = new Worker(URL.createObjectURL(new Blob([$("worker").textContent], { type: "text/javascript" })));
const waiting = new Map();
let asked = 0, queue = Promise.resolve();
worker.onmessage = ({ data: answer }) => waiting.get(answer.id)(answer);

function post(question, onPart) {
  return new Promise((resolve, reject) => {
    waiting.set(++asked, (answer) => (answer.done ? resolve : "error" in answer ? reject : onPart)(answer));
    worker.postMessage({ id: asked, ...question });
  });
}

/** One long question after the other; what is still being computed is stopped. */
function ask(question, onPart) {
  post({ ask: "stop" });
  const answer = queue.then(() => post(question, onPart));
  queue = answer.catch(() => {});
  return answer;
}

function fail(error) {
  $("status").textContent = error.tooLong ? say("tooLong", error.tooLong) : say("failed", { error: error.error ?? error });
}

// ------------------------------------------------------------------------------------------------------ the chat

/** Put the words of an answer into its box, what stands between <think> and </think> folded away. */
function fill({ content, fold, words }, running) {
  const [, thought, rest] = /^\s*<think>([^]*?)(?:<\/think>([^]*))?$/.exec(content) ?? [];
  fold.hidden = thought === undefined;
  words.textContent = fold.hidden ? content : (rest ?? "").replace(/<\/?answer>/g, "").trim();
  if (fold.hidden) return;
  fold.firstChild.textContent = say(running && rest === undefined ? "thinking" : "thought", { n: [...thought].length });
  fold.lastChild.textContent = thought.trim();
}

function addTurn(role, content) {
  const fold = make("details", {}, make("summary"), make("div")), words = make("div"), note = make("p", { className: "quiet" });
  const turn = { role, content, fold, words, note, box: make("div", { className: `turn ${role}` }, fold, words, note) };
  $("turns").append(turn.box);
  turns.push(turn);
  fill(turn);
  $("turns").scrollTop = $("turns").scrollHeight;
  return turn;
}

async function answer() {
  const messages = turns.map(({ role, content }) => ({ role, content })), turn = addTurn("assistant", ""), { name } = about;
  const { most, ...sampling } = Object.fromEntries(Object.keys(SLIDERS).map((key) => [key, Number($(key).value)]));
  $("status").textContent = say("working");
  busy(true);
  try {
    const done = await ask({ ask: "answer", messages, sampling, most, off }, (part) => {
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
    look({ ids: done.ids, prompt: done.prompt });
  } catch (error) {
    turns.pop().box.remove();
    fail(error);
  }
  busy(false);
}

function busy(running) {
  $("stop").disabled = !running;
  $("send").disabled = running || !about;
  $("retry").disabled = running || !about || !turns.length;
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
  post({ ask: "stop" });
  turns = [];
  $("turns").replaceChildren();
}

// ------------------------------------------------------------------------------------------------ looking inside

async function look(what = source) {
  source = what;
  if (!source || !about) return;
  try {
    seen = await ask({ ask: "look", ...source, off });
    chosen = Math.min(chosen ?? Infinity, seen.tokens.length - 1);
    tell(seen);
    await inspect();
  } catch (error) { fail(error); }
}

/** What would come after the chosen token, layer by layer, and where the picked head looks. */
async function inspect() {
  const { layers } = await post({ ask: "lens", position: chosen, count: 5 });
  map = picked && (await post({ ask: "attention", layer: picked[0], head: picked[1] })).map;
  const cell = ({ bytes, p }) => make("td", {}, label(bytes), make("i", {}, ` ${(100 * p).toFixed(p < 0.1 ? 1 : 0)} %`));
  const line = (best, l) => make("tr", {}, make("th", {}, say(l ? "layer" : "embedding", { l })), ...best.map(cell));
  $("lens").replaceChildren(make("tr", {}, make("th", { colSpan: 6 }, say("next"))), ...layers.map(line).reverse());
  draw();
}

function draw() {
  const { tokens, cut } = seen, T = tokens.length, { bytes, id, loss } = tokens[chosen], from = source.prompt ?? 1;
  const mean = tokens.slice(from).reduce((sum, token) => sum + token.loss, 0) / Math.max(T - from, 1);
  $("found").textContent = say("found", { n: T, cut, mean: mean.toFixed(2), of: say(source.prompt ? "answer" : "whole") });
  $("token").textContent = say("token", { at: chosen, id, hex: hex(bytes), loss: loss?.toFixed(2) ?? "–" });
  $("tokens").replaceChildren(...tokens.map(({ bytes, loss }, at) => {
    const onclick = () => { chosen = at; inspect().catch(fail); }, strength = map ? Math.sqrt(map[chosen * T + at]) : Math.min(loss / 8, 1);
    const node = make("button", { className: "token", ariaPressed: at === chosen, onclick }, label(bytes));
    node.style.background = `rgb(var(${map ? "--blue" : "--red"}) / ${0.85 * strength})`;
    return node;
  }));
  $("map").hidden = !map;
  if (!map) return;
  const image = new ImageData(T, T), colour = getComputedStyle(document.body).getPropertyValue("--blue").trim().split(" ");
  map.forEach((weight, i) => image.data.set([...colour, 255 * Math.sqrt(weight)], 4 * i));
  $("map").width = $("map").height = T;
  $("map").getContext("2d").putImageData(image, 0, 0);
}

function tell(found = accounted) {
  accounted = found;
  const [cached, anew] = found.flops.map(short);
  $("account").textContent = say("account", { positions: found.positions, bytes: short(found.bytes), cached, anew });
}

/** The grid of heads, and what is switched off. */
function drawSwitches() {
  const { n_layers, n_heads } = about.shape, same = (l, h) => picked?.[0] === l && picked[1] === h;
  $("heads").style.gridTemplateColumns = `repeat(${n_heads}, minmax(1.6rem, 2.5rem))`;
  $("heads").replaceChildren(...Array.from({ length: n_layers * n_heads }, (_, i) => {
    const l = Math.floor(i / n_heads), h = i % n_heads, isOff = off.layers.includes(l) || off.heads.includes(`${l}.${h}`);
    const onclick = () => { picked = same(l, h) ? null : [l, h]; drawSwitches(); if (seen) inspect().catch(fail); };
    return make("button", { className: isOff ? "off" : "", ariaPressed: same(l, h), onclick }, `${l + 1}.${h + 1}`);
  }));
  $("picked").hidden = !picked;
  if (!picked) return;
  const [l, h] = picked, turned = (list, one) => (list.includes(one) ? list.filter((other) => other !== one) : [...list, one]);
  for (const key of ["headOff", "layerOff"]) $(key).textContent = say(key, { l: l + 1, h: h + 1 });
  $("headOff").onclick = () => change({ heads: turned(off.heads, `${l}.${h}`) });
  $("layerOff").onclick = () => change({ layers: turned(off.layers, l) });
}

function change(switches) {
  off = { ...off, ...switches };
  drawSwitches();
  look();
}

// ---------------------------------------------------------------------------------------------- stages, languages

async function load(index) {
  about = picked = seen = null;
  off = { ...off, layers: [], heads: [] };
  busy(false);
  $("stage").value = index;
  [...$("stages").children].forEach((node, i) => { node.ariaPressed = i === index; });
  try {
    await ask({ ask: "load", about: data.models[index], base64: $(`weights${index}`).textContent });
  } catch (error) { return fail(error); }
  if (Number($("stage").value) !== index) return; // somebody moved on meanwhile
  about = data.models[index];
  busy(false);
  translate();
  look();
}

function translate() {
  document.documentElement.lang = chinese ? "zh" : "en";
  $("language").textContent = chinese ? "English" : "中文";
  document.querySelectorAll("[data-say]").forEach((node) => { node.textContent = say(node.dataset.say); });
  $("own").placeholder = say("own");
  turns.forEach((turn) => fill(turn));
  if (accounted) tell();
  if (!about) return;
  const { name, parameters, weights, chats, shape } = about;
  $("question").placeholder = say(chats ? "chat" : "text");
  $("facts").textContent = say("facts", { name, parameters: short(parameters), weights, layers: shape.n_layers, context: shape.max_seq_len });
  drawSwitches();
  if (seen) inspect().catch(fail);
}

for (const [id, [min, max, step, value]] of Object.entries(SLIDERS)) {
  const shown = make("output", {}, String(value)), words = make("label", { htmlFor: id });
  words.dataset.say = id;
  $("sliders").append(words, make("input", { type: "range", id, min, max, step, value, oninput() { shown.value = this.value; } }), shown);
}
$("stages").append(...data.models.map(({ name }, index) => make("button", { onclick: () => load(index) }, name)));
$("stage").max = data.models.length - 1;
$("road").hidden = data.models.length < 2;
$("stage").onchange = () => load(Number($("stage").value));
$("send").onclick = send;
$("stop").onclick = () => post({ ask: "stop" });
$("retry").onclick = () => { if (turns.at(-1).role === "assistant") turns.pop().box.remove(); answer(); };
$("clear").onclick = () => { clear(); busy(false); };
$("question").onkeydown = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); } };
$("read").onclick = () => { chosen = undefined; look({ text: $("own").value }); };
for (const id of ["ahead", "positions"]) $(id).onchange = () => change({ [id]: $(id).checked });
$("language").onclick = () => { chinese = !chinese; translate(); };
post({ ask: "setup", data: data.tokenizer });
translate();
load(data.models.length - 1);
