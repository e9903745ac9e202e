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

class Tokenizer {
  /** tokens: the symbols of every id; merges: [left, right, left, ...] in order of rank; special: ids by name. */
  constructor({ tokens, merges, special, system, tags }) {
    const symbols = byteSymbols(), idOf = new Map(tokens.map((token, id) => [token, id]));
    Object.assign(this, { tokens, special, system, idOfByte: symbols.map((symbol) => idOf.get(symbol)) });
    this.byteOf = new Map(symbols.map((symbol, byte) => [symbol, byte]));
    this.control = new Set(Object.values(special));
    this.tags = RegExp(`(${tags.join("|")})`);
    this.merges = new Map(); // pair -> [rank, id of both together]
    for (let i = 0; i < merges.length; i += 2)
      this.merges.set(merges[i] * 65536 + merges[i + 1], [i, idOf.get(tokens[merges[i]] + tokens[merges[i + 1]])]);
  }

  /** Text -> ids. Special tokens in the text stay ordinary characters. */
  encode(text) {
    return Array.from(text.matchAll(PIECES), ([piece]) => this.merge(piece)).flat();
  }

  /** Join the pair with the lowest rank, the leftmost first, until no pair is known. */
  merge(piece) {
    const ids = Array.from(new TextEncoder().encode(piece), (byte) => this.idOfByte[byte]);
    for (;;) {
      let at = -1, best = [Infinity];
      for (let i = 0; i + 1 < ids.length; i++) {
        const found = this.merges.get(ids[i] * 65536 + ids[i + 1]);
        if (found && found[0] < best[0]) [at, best] = [i, found];
      }
      if (at < 0) return ids;
      ids.splice(at, 2, best[1]);
    }
  }

  /** The bytes of a token, which may be part of a character. */
  bytes(id) {
    if (this.control.has(id)) return [...new TextEncoder().encode(this.tokens[id])];
    return Array.from(this.tokens[id], (symbol) => this.byteOf.get(symbol));
  }

  /** The prompt for the assistant's answer; header, content and tags are encoded separately, as in training. */
  prompt(messages) {
    const { bos, eos } = this.special, encode = (part) => this.encode(part);
    const whole = messages[0].role === "system" ? messages : [{ role: "system", content: this.system }, ...messages];
    const ids = whole.flatMap(({ role, content }) =>
      [bos, ...encode(role + "\n"), ...content.split(this.tags).flatMap(encode), eos, ...encode("\n")]);
    return [...ids, bos, ...encode("assistant\n")];
  }
}
