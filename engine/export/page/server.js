// For a page that serve.py sends: the server answers, the worker inspects.

const HERE = location.pathname.replace(/\/?$/, "/"); // a proxy may serve the page as /some/path
const parse = (text) => { try { return JSON.parse(text) ?? {}; } catch { return {}; } }; // a proxy may answer anything
let calling; // the running request

function halt() {
  calling?.abort();
  post({ ask: "stop" });
}

/** Let the user type the server's API key; false: they would not. The browser forgets it with the tab. */
function askForKey(isWrong) {
  $("wrong").hidden = !isWrong;
  $("keyDialog").returnValue = $("key").value = "";
  $("keyDialog").showModal();
  return new Promise((resolve) => {
    $("keyDialog").onclose = ({ target }) => {
      if (target.returnValue) sessionStorage.setItem("key " + HERE, $("key").value.trim());
      resolve(Boolean(target.returnValue));
    };
  });
}

/** What the server sends as `type` from an address beside the page; everything else is an error with words for it. */
async function call(address, type, options) {
  for (;;) {
    const key = sessionStorage.getItem("key " + HERE), headers = { "Content-Type": "application/json" };
    // A header has characters up to U+00FF, each of which is sent as a byte: here those of UTF-8.
    if (key) headers.Authorization = "Bearer " + String.fromCharCode(...new TextEncoder().encode(key));
    const settings = { cache: "no-store", headers, signal: calling.signal, ...options };
    const reply = await fetch(HERE + address, settings).catch(() => { throw Error(say("unreachable")); });
    if (reply.ok && reply.headers.get("Content-Type")?.startsWith(type)) return reply;
    if (reply.status === 401 && await askForKey(key)) continue;
    throw Error(parse(await reply.text()).error?.message ?? say("otherReply", reply));
  }
}

/** The page as the server sends it with the key: the data and the weights are in it. */
async function unlock() {
  calling = new AbortController();
  const text = await (await call("", "text/html")).text();
  const page = new DOMParser().parseFromString(text, "text/html"); // inert: no script in it runs
  for (const id of ["data", "weights0"]) $(id).textContent = page.getElementById(id).textContent;
  return JSON.parse($("data").textContent);
}

/** Yield {content, reasoning_content} or {text} of each delta, the finish reason and the usage. */
async function* deltas(path, body) {
  const reply = await call(`v1/${path}`, "text/event-stream", { method: "POST", body: JSON.stringify(body) });
  let rest = "";
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  const next = () => reader.read().catch(() => { throw Error(say("cutOff")); });
  for (let read = await next(); !read.done; read = await next()) {
    const lines = (rest + read.value).split(/\r?\n/); // an event is a line: a proxy may add comments and line ends
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:") || line.endsWith("[DONE]")) continue;
      const chunk = parse(line.slice("data:".length));
      if (!chunk.choices) throw Error(chunk.error?.message ?? say("cutOff"));
      const [{ delta, text, finish_reason } = {}] = chunk.choices;
      yield { ...delta, text, finish: finish_reason, usage: chunk.usage };
    }
  }
}

/** The response to {ask: "answer"} from the server: its deltas are joined as the model generated them. */
async function askServer({ messages, sampling, most }, tell) {
  const { signal } = calling = new AbortController();
  const { kept, ids: _, ...account } = await ask({ ask: "ids", messages, most, said: "" });
  const [path, asked] = about.chats ? ["chat/completions", { messages: kept, truncation: "auto" }]
    : ["completions", { prompt: messages.at(-1).content }];
  const seed = Math.floor(Math.random() * 2 ** 31);
  const body = { model: about.name, ...asked, ...sampling, max_tokens: most, seed };
  let said = "", part = "", why, usage = {}, began;
  const add = (words) => { said += words; tell({ ...account, text: words }); };
  try {
    for await (const delta of deltas(path, { ...body, stream: true, stream_options: { include_usage: true } })) {
      const { reasoning_content: reasoning, content = delta.text, finish } = delta;
      if (reasoning || content) began ??= performance.now();
      if (reasoning) add((part ? "" : "<think>\n") + reasoning);
      if (reasoning) part = "reasoning";
      if (content) add((part === "reasoning" ? "\n</think>\n<answer>\n" : "") + content);
      if (content && part === "reasoning") part = "answer";
      if (finish) why = finish === "stop" ? "end" : "limit";
      usage = delta.usage ?? usage;
    }
    if (why === "end" && part === "answer") add("\n</answer>");
  } catch (error) {
    if (!why && !signal.aborted) throw error;
    why ??= "stopped";
  }
  if (!why) throw Error(say("cutOff"));
  const seconds = (performance.now() - began) / 1000, found = await ask({ ask: "ids", messages: kept, most, said });
  const { completion_tokens: count = found.ids.length - found.prompt } = usage;
  return { ...found, text: "", why, cached: 0, count, speed: count > 1 ? (count - 1) / seconds : 0 };
}
