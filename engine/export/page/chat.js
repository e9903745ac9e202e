// The chat, and what the controls do.

const SLIDERS = { // min, max, step, initial value
  temperature: [0, 2, 0.05, 0.7], top_p: [0.05, 1, 0.05, 0.9], top_k: [0, 100, 1, 0], most: [16, 1024, 16, 512] };
let turns = [], running; // running: the turn that is being answered

/** Show an answer in its box, with the text between <think> and </think> folded. */
function fill({ content, fold, words }, running) {
  const [, thought, rest] = /^\s*<think>\s*([^]*?)\s*(?:<\/think>([^]*))?$/.exec(content) ?? [];
  fold.hidden = thought === undefined;
  words.textContent = fold.hidden ? content : (rest ?? "").replace(/<\/?answer>/g, "").trim();
  if (fold.hidden) return;
  fold.firstChild.textContent = say(running && rest === undefined ? "thinking" : "thought", { n: [...thought].length });
  fold.lastChild.textContent = thought;
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
  const turn = running = addTurn("assistant", ""), isRunning = () => running === turn; // not after "new chat"
  const { most, ...sampling } = Object.fromEntries(Object.keys(SLIDERS).map((key) => [key, Number($(key).value)]));
  $("status").textContent = say("working");
  $("heard").textContent = "";
  refresh();
  try {
    const done = await (data.served ? askServer : ask)({ ask: "answer", messages, sampling, most, off }, (part) => {
      const { scrollHeight, scrollTop, clientHeight } = $("turns");
      turn.content += part.text;
      fill(turn, true);
      if (isRunning()) tell(part);
      if (scrollHeight - scrollTop - clientHeight < 40) $("turns").scrollTop = $("turns").scrollHeight;
    });
    turn.content += done.text;
    turn.note.textContent = say("told", { ...done, name, why: say(done.why), speed: done.speed.toFixed(0) });
    if (!isRunning()) return;
    $("status").textContent = "";
    look({ ids: done.ids, prompt: done.prompt });
  } catch (error) {
    if (isRunning()) giveBack(turn, messages.at(-1).content, error);
  } finally {
    fill(turn);
    if (isRunning()) {
      running = null;
      $("heard").textContent = turn.words.textContent; // all at once, for those who hear the page
      refresh();
    }
  }
}

/** After an error: what was said stays, and the question is back in its field, to be changed or sent again. */
function giveBack(turn, question, error) {
  fail(error);
  turn.failed = true;
  turn.note.textContent = $("status").textContent;
  if (!turn.content) turns.pop().box.remove();
  $("question").value ||= question;
}

/** What can be done now. */
function refresh() {
  $("stop").disabled = !running;
  $("send").disabled = running || !about;
  $("retry").disabled = running || loading != null || (about && !turns.length);
  $("try").hidden = turns.length;
}

function send() {
  const question = $("question").value, last = turns.findLastIndex(({ role }) => role === "user");
  if (!question.trim() || $("send").disabled) return;
  if (!about.chats) clear();
  else if (turns.length && (turns.at(-1) === turns[last] || (turns.at(-1).failed && turns[last].content === question)))
    turns.splice(last).forEach(({ box }) => box.remove()); // it got no answer, or is asked again
  $("question").value = "";
  addTurn("user", question);
  answer();
}

/** Ask the last question again; without a model, what failed was to get one. */
function retry() {
  if (!data.models) return begin();
  if (!about) return load(Number($("stage").value));
  if (turns.at(-1).role === "assistant") turns.pop().box.remove();
  if ($("question").value === turns.at(-1).content) $("question").value = ""; // given back after an error
  answer();
}

function clear() {
  halt();
  turns = [];
  running = null;
  $("turns").replaceChildren();
  $("status").textContent = "";
  refresh();
}

for (const [id, [min, max, step, value]] of Object.entries(SLIDERS)) {
  const shown = make("output", {}, String(value)), words = make("label", { htmlFor: id });
  const oninput = ({ target }) => { shown.value = target.value; };
  words.dataset.say = id;
  $("sliders").append(words, make("input", { type: "range", id, min, max, step, value, oninput }), shown);
}
$("stage").onchange = () => load(Number($("stage").value));
$("send").onclick = send;
$("stop").onclick = halt;
$("retry").onclick = retry;
$("clear").onclick = clear;
$("question").onkeydown = (event) => {
  const confirms = event.isComposing || event.keyCode === 229; // an input method's words; Safari tells only the code
  const breaks = event.shiftKey || matchMedia("(pointer: coarse)").matches; // a phone has no Shift+Enter
  if (event.key === "Enter" && !confirms && !breaks) { event.preventDefault(); send(); }
};
addEventListener("beforeunload", (event) => { if (turns.length) event.preventDefault(); }); // the browser asks
$("read").onclick = () => { chosen = undefined; look({ text: $("own").value }); };
for (const id of ["ahead", "positions"]) $(id).onchange = () => change({ [id]: $(id).checked });
$("language").onclick = () => { chinese = !chinese; translate(); };
translate();
begin();
