// The worker computes, so that the page stays responsive. A request is {id, ask, ...}, its responses are {id, ...};
// the last one has done or error.

const CHUNK = 16; // tokens of a prompt between two checks for messages
const HISTORY = 4; // earlier question-answer pairs a chat remembers, as eval_model.py does
let tokenizer, model, talk, looked, stopped, breathed = 0;

/** Yield to incoming messages, every 25 ms; returns whether one says "stop". setTimeout would wait at least 4 ms. */
async function breathe() {
  if (performance.now() - breathed < 25) return stopped;
  const { port1, port2 } = new MessageChannel();
  await new Promise((resume) => { port1.onmessage = resume; port2.postMessage(0); });
  port1.close();
  breathed = performance.now();
  return stopped;
}

/** Yield [start, residual stream] of ids chunk by chunk, until stopped; with `ahead`, all of them at once. */
async function* read(ids, cache, off) {
  const size = off.ahead ? ids.length : CHUNK;
  for (let start = 0; start < ids.length; start += size) {
    if (await breathe()) return;
    yield [start, model.forward(ids.slice(start, start + size), cache, off)];
  }
}

/** The ids to continue, and the messages in them: the oldest turns go until a quarter of the context is free. */
async function promptFor(messages, most) {
  const context = model.max_seq_len;
  let kept = messages.slice(-1 - 2 * HISTORY);
  const encode = () => model.about.chats ? tokenizer.prompt(kept) : start(kept.at(-1).content);
  let ids = await encode();
  while (kept.length > 2 && ids.length + Math.min(most, context >> 2) > context) {
    kept = kept.slice(2);
    ids = await encode();
  }
  if (ids.length >= context) throw Object.assign(Error("too long"), { tooLong: { tokens: ids.length, context } });
  return { ids, kept };
}

const start = async (text) => [tokenizer.special.bos, ...await tokenizer.encode(text)];
const row = (x, t) => x.subarray(t * model.dim, (t + 1) * model.dim);
const account = ({ length }) =>
  ({ positions: length, bytes: 8 * model.n_layers * model.kv_dim * length, flops: model.flops(length) });

/** Keep the prefix that the cache shares with ids, nothing if other switches were set. Returns its length. */
function keepShared(cache, ids, off) {
  const switched = JSON.stringify(off), most = cache.off === switched ? Math.min(cache.length, ids.length - 1) : 0;
  let shared = 0;
  while (shared < most && cache.ids[shared] === ids[shared]) shared++;
  Object.assign(cache, { length: shared, ids: ids.slice(0, shared), off: switched });
  return shared;
}

const asks = {
  setup({ data }) { tokenizer = new Tokenizer(data, breathe); },

  load({ about, base64 }) {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    model = new Model(about, bytes);
    talk = new Cache(model, model.max_seq_len);
  },

  stop() { stopped = true; },

  /** Stream text with its cost; then the finish reason, all ids and the speed. */
  async answer({ messages, sampling, off, most }, tell) {
    stopped = false;
    const { ids } = await promptFor(messages, most);
    const prompt = ids.length, limit = Math.min(model.max_seq_len, prompt + most);
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true }), cached = keepShared(talk, ids, off);
    let why = "limit", text = "", told = 0, began, x;
    while (ids.length < limit) {
      if (off.ahead) keepShared(talk, [], off); // a new token changes the attention of all earlier ones
      for await ([, x] of read(ids.slice(talk.length), talk, off));
      if (stopped) { why = "stopped"; break; }
      const next = choose(model.logits(x.subarray(-model.dim)), sampling);
      if (next === tokenizer.special.eos) { why = "end"; break; }
      ids.push(next);
      began ??= performance.now(); // the prompt is read
      text += decoder.decode(Uint8Array.from(tokenizer.bytes(next)), { stream: true });
      if (performance.now() - told < 50) continue; // rendering takes time of the same core
      tell({ text, ...account(talk) });
      text = "";
      told = performance.now();
    }
    const count = ids.length - prompt, speed = count > 1 ? 1000 * (count - 1) / (performance.now() - began) : 0;
    return { text: text + decoder.decode(), why, ids, prompt, cached, count, speed, ...account(talk) };
  },

  /** For the answer of a server: the messages to send, and the ids of the prompt and of what is `said`. */
  async ids({ messages, most, said }) {
    stopped = false;
    const { ids: prompt, kept } = await promptFor(messages, most), { eos } = tokenizer.special;
    let ids = await start(messages.at(-1).content + said);
    if (model.about.chats) {
      const whole = await tokenizer.prompt([...messages.slice(-1), { role: "assistant", content: said }]);
      const from = (await tokenizer.prompt(messages.slice(-1))).length;
      ids = [...prompt, ...whole.slice(from, whole.lastIndexOf(eos))];
    }
    return { prompt: prompt.length, ids, kept, ...account(ids) };
  },

  /** Every token with its bytes and its loss in nats; the first has none. */
  async look({ ids, text, off }) {
    stopped = false;
    const whole = ids ?? await start(text), all = whole.slice(0, model.max_seq_len), losses = [null];
    const cache = new Cache(model, all.length, true);
    for await (const [start, x] of read(all, cache, off))
      for (let t = 0; t * model.dim < x.length; t++)
        losses.push(-Math.log(softmax(model.logits(row(x, t)))[all[start + t + 1]]));
    if (stopped) return { stopped };
    looked = { cache, off };
    const tokens = cache.ids.map((id, at) => ({ id, bytes: tokenizer.bytes(id), loss: losses[at] }));
    return { tokens, cut: whole.length - all.length, ...account(cache) };
  },

  /** The most likely next tokens after each layer (logit lens). */
  lens({ position, count }) {
    return { layers: looked.cache.x.map((x) => {
      const p = softmax(model.logits(row(x, position))), best = [...p.keys()].sort((a, b) => p[b] - p[a]);
      return best.slice(0, count).map((id) => ({ id, bytes: tokenizer.bytes(id), p: p[id] }));
    }) };
  },

  /** Attention weights of a head: (T, T), rows sum to 1; zeros where it is off. */
  attention({ layer, head }) {
    const { cache: { q, k, length: T }, off } = looked, map = new Float32Array(T * T);
    const isOff = off.layers.includes(layer) || off.heads.includes(`${layer}.${head}`);
    for (let t = 0, at = head * model.head_dim; t < T && !isOff; t++, at += model.dim)
      map.set(model.looks(q[layer], at, k[layer], head, off.ahead ? T : t + 1).subarray(0, T), t * T);
    return { map };
  },
};

onmessage = async ({ data: { id, ask, ...question } }) => {
  try {
    postMessage({ id, done: true, ...await asks[ask](question, (part) => postMessage({ id, ...part })) });
  } catch (error) {
    postMessage({ id, error: error.message, tooLong: error.tooLong });
  }
};
