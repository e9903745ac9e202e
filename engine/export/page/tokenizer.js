// The tokenizer and the chat template of dataset.py in JavaScript: byte-level BPE with GPT-2's split.
"use strict";

// Not \s, which in JavaScript includes U+FEFF but not U+0085: the tokenizer splits at Unicode's White_Space.
const PIECES = RegExp(String.raw`'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+` +
  String.raw`|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+`, "gu");

/** GPT-2's visible character of each byte: printable bytes are themselves, the others U+0100 and following. */
function byteSymbols() {
  const printable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
}

/** Numbers, of which pop() takes the smallest one; both methods take log n steps. */
class Heap {
  items = [];

  push(item) {
    const { items } = this;
    let at = items.length;
    for (let parent; at > 0 && items[parent = (at - 1) >> 1] > item; at = parent) items[at] = items[parent];
    items[at] = item;
  }

  pop() {
    const { items } = this, smallest = items[0], item = items.pop();
    let at = 0;
    for (let child = 1; child < items.length; child = 2 * at + 1) {
      if (items[child + 1] < items[child]) child++;
      if (items[child] >= item) break;
      items[at] = items[child];
      at = child;
    }
    if (items.length) items[at] = item;
    return smallest;
  }
}

class Tokenizer {
  /**
   * tokens: the symbols of every id; merges: [left, right, left, ...] in order of rank; special: ids by name.
   * pause: awaited again and again while a text is read; true stops the reading.
   */
  constructor({ tokens, merges, special, system, tags }, pause) {
    const symbols = byteSymbols(), idOf = new Map(tokens.map((token, id) => [token, id]));
    Object.assign(this, { tokens, special, system, pause, idOfByte: symbols.map((symbol) => idOf.get(symbol)) });
    this.byteOf = new Map(symbols.map((symbol, byte) => [symbol, byte]));
    this.control = new Set(Object.values(special));
    this.tags = RegExp(`(${tags.join("|")})`);
    this.merges = new Map(); // pair -> [rank, id of both together]
    for (let i = 0; i < merges.length; i += 2)
      this.merges.set(merges[i] * 65536 + merges[i + 1], [i, idOf.get(tokens[merges[i]] + tokens[merges[i + 1]])]);
  }

  /** Text -> ids. Special tokens in the text stay ordinary characters. */
  async encode(text) {
    const pieces = [];
    for (const [piece] of text.matchAll(PIECES)) {
      if (await this.pause()) break;
      pieces.push(await this.merge(piece));
    }
    return pieces.flat();
  }

  /** Join the pair with the lowest rank, the leftmost first, until no pair is known. */
  async merge(piece) {
    const ids = Array.from(new TextEncoder().encode(piece), (byte) => this.idOfByte[byte]); // -1: joined to its left
    const next = ids.map((_, at) => at + 1), previous = ids.map((_, at) => at - 1); // places of those not joined
    const pairs = new Heap(), known = (at) => this.merges.get(ids[at] * 65536 + ids[next[at]]);
    const add = (at) => { if (known(at)) pairs.push(known(at)[0] * 2 ** 32 + at); };
    ids.forEach((_, at) => add(at));
    for (let joined = 0; pairs.items.length;) {
      const pair = pairs.pop(), at = pair % 2 ** 32, [rank, id] = known(at) ?? [];
      if (rank !== Math.floor(pair / 2 ** 32)) continue; // one of the two was joined to another one since
      ids[next[at]] = -1;
      ids[at] = id;
      next[at] = next[next[at]];
      previous[next[at]] = at;
      [previous[at], at].forEach(add);
      if (++joined % 1024 === 0 && await this.pause()) return [];
    }
    return ids.filter((id) => id >= 0);
  }

  /** The bytes of a token, which may be part of a character. */
  bytes(id) {
    if (this.control.has(id)) return [...new TextEncoder().encode(this.tokens[id])];
    return Array.from(this.tokens[id], (symbol) => this.byteOf.get(symbol));
  }

  /** The prompt for the assistant's answer; header, content and tags are encoded separately, as in training. */
  async prompt(messages) {
    const { bos, eos } = this.special, ids = [];
    const whole = messages[0].role === "system" ? messages : [{ role: "system", content: this.system }, ...messages];
    const parts = whole.flatMap(({ role, content }) => [bos, role + "\n", ...content.split(this.tags), eos, "\n"]);
    for (const part of [...parts, bos, "assistant\n"])
      ids.push(typeof part === "string" ? await this.encode(part) : part);
    return ids.flat();
  }
}
