// The tokenizer and the chat template of dataset.py again: byte-level BPE with GPT-2's way of cutting a text.
"use strict";

// Not \s, which in JavaScript knows U+FEFF but not U+0085: the tokenizer cuts at Unicode's White_Space.
const PIECES = RegExp(String.raw`'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+` +
  String.raw`|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+`, "gu");

/** GPT-2's visible character of each byte: printable ones stand for themselves, the others from U+0100 on. */
function byteSymbols() {
  const printable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
}

class Tokenizer {
  /** tokens: the symbols of every id; merges: [left, right, left, ...], the first first; special: ids by name. */
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

  /** Text -> ids. Control tokens that somebody types stay ordinary characters. */
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

  /** The bytes a token stands for: those of one token may be part of a character. */
  bytes(id) {
    if (this.control.has(id)) return [...new TextEncoder().encode(this.tokens[id])];
    return Array.from(this.tokens[id], (symbol) => this.byteOf.get(symbol));
  }

  /** The ids to continue when the assistant is to answer; header, words and tags are encoded apart, as in training. */
  prompt(messages) {
    const { bos, eos } = this.special, encode = (part) => this.encode(part);
    const whole = messages[0].role === "system" ? messages : [{ role: "system", content: this.system }, ...messages];
    const ids = whole.flatMap(({ role, content }) =>
      [bos, ...encode(role + "\n"), ...content.split(this.tags).flatMap(encode), eos, ...encode("\n")]);
    return [...ids, bos, ...encode("assistant\n")];
  }
}
