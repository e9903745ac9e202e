// For a page that serve.py sends: the server answers, the worker inspects.

let calling; // the running request

function halt() {
  calling?.abort();
  post({ ask: "stop" });
}

/** Yield {content, reasoning_content} or {text} of each delta, then the finish reason. */
async function* pieces(path, body) {
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
      const told = JSON.parse(event.replace(/^data: /, ""));
      if (told.error) throw Error(told.error.message);
      const [{ delta, text, finish_reason } = {}] = told.choices;
      yield { ...delta, text, finish: finish_reason, usage: told.usage };
    }
  }
}

/** The response to {ask: "answer"} from the server: its deltas are joined as the model generated them. */
async function askServer({ messages, sampling, most }, tell) {
  const [path, asked] = about.chats ? ["chat/completions", { messages, truncation: "auto" }]
    : ["completions", { prompt: messages.at(-1).content }];
  const seed = Math.floor(Math.random() * 2 ** 31);
  const body = { model: about.name, ...asked, ...sampling, max_tokens: most, seed };
  const cost = await post({ ask: "ids", messages, said: "" });
  let said = "", part = "", why = "stopped", usage = {}, began;
  const add = (words) => { said += words; tell({ ...cost, text: words }); };
  calling = new AbortController();
  try {
    for await (const piece of pieces(path, { ...body, stream: true, stream_options: { include_usage: true } })) {
      const { reasoning_content: thought, content = piece.text, finish } = piece;
      if (thought || content) began ??= performance.now();
      if (thought) add((part ? "" : "<think>\n") + thought);
      if (thought) part = "thought";
      if (content) add((part === "thought" ? "\n</think>\n<answer>\n" : "") + content);
      if (content && part === "thought") part = "answer";
      if (finish) why = finish === "stop" ? "end" : "limit";
      usage = piece.usage ?? usage;
    }
    if (why === "end" && part === "answer") add("\n</answer>");
  } catch (error) {
    if (error.name !== "AbortError") throw { error: error.message };
  }
  const seconds = (performance.now() - began) / 1000, found = await post({ ask: "ids", messages, said });
  const { completion_tokens: count = found.ids.length - found.prompt } = usage;
  return { ...found, text: "", why, cached: 0, count, speed: count > 1 ? (count - 1) / seconds : 0 };
}
