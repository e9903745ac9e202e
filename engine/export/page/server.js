// For a page that serve.py sends: the server answers, the worker inspects.

let calling; // the running request

function halt() {
  calling?.abort();
  post({ ask: "stop" });
}

/** Yield {content, reasoning_content} or {text} of each delta, then the finish reason. */
async function* deltas(path, body) {
  const reply = await fetch(`/v1/${path}`, {
    method: "POST", signal: calling.signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  if (!reply.ok) throw Error((await reply.json()).error.message);
  let rest = "";
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    const events = (rest + read.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") continue;
      const chunk = JSON.parse(event.replace(/^data: /, ""));
      if (chunk.error) throw Error(chunk.error.message);
      const [{ delta, text, finish_reason } = {}] = chunk.choices;
      yield { ...delta, text, finish: finish_reason, usage: chunk.usage };
    }
  }
}

/** The response to {ask: "answer"} from the server: its deltas are joined as the model generated them. */
async function askServer({ messages, sampling, most }, tell) {
  const [path, asked] = about.chats ? ["chat/completions", { messages, truncation: "auto" }]
    : ["completions", { prompt: messages.at(-1).content }];
  const seed = Math.floor(Math.random() * 2 ** 31);
  const body = { model: about.name, ...asked, ...sampling, max_tokens: most, seed };
  const account = await post({ ask: "ids", messages, said: "" });
  let said = "", part = "", why = "stopped", usage = {}, began;
  const add = (words) => { said += words; tell({ ...account, text: words }); };
  calling = new AbortController();
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
    if (error.name !== "AbortError") throw { error: error.message };
  }
  const seconds = (performance.now() - began) / 1000, found = await post({ ask: "ids", messages, said });
  const { completion_tokens: count = found.ids.length - found.prompt } = usage;
  return { ...found, text: "", why, cached: 0, count, speed: count > 1 ? (count - 1) / seconds : 0 };
}
