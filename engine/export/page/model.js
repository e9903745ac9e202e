// The decoder of model.py in JavaScript: RMSNorm, RoPE, grouped-query attention, SwiGLU and a key-value cache.
// Shapes: T tokens of a chunk, S positions of the cache, C dim, H query heads, D head size, V tokens.

/** A matrix with its rows interleaved in groups of eight: one pass over x feeds eight sums. */
class Matrix {
  constructor(rows, columns) {
    Object.assign(this, { rows, columns, values: new Float32Array(((rows + 7) & ~7) * columns) });
  }

  /** The index of a row's first value; its values are eight positions apart. */
  place(row) {
    return (row & ~7) * this.columns + (row & 7);
  }

  /** x (T, columns) -> (T, rows). The last rows first: what they write past a vector's end is overwritten. */
  times(x) {
    const { rows, columns, values: w } = this, y = new Float32Array(x.length / columns * rows), wide = rows + 7 & ~7;
    for (let next = 0; next < wide; next += 8)
      for (let i = 0, row = (next || wide) - 8, at = row; at < y.length; at += rows) {
        let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0, place = row * columns;
        for (const end = i + columns; i < end; i++, place += 8) {
          const u = x[i], o = place & 0x3fffffff; // now o + 7 is known to fit in 32 bits, and no sum of them is checked
          a += w[o] * u; b += w[o + 1] * u; c += w[o + 2] * u; d += w[o + 3] * u;
          e += w[o + 4] * u; f += w[o + 5] * u; g += w[o + 6] * u; h += w[o + 7] * u;
        }
        y[at] = a; y[at + 1] = b; y[at + 2] = c; y[at + 3] = d;
        y[at + 4] = e; y[at + 5] = f; y[at + 6] = g; y[at + 7] = h;
      }
    return y;
  }
}

function halfToFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Unpack {name: Matrix or vector}: all float32 values (vectors, scales of rows) come first, then the matrices. */
function unpack({ buffer }, { tensors, floats, weights }) {
  const numbers = new Float32Array(buffer, 0, floats), found = {}, eight = weights === "int8";
  const codes = eight ? new Int8Array(buffer, 4 * floats) : new Uint16Array(buffer, 4 * floats);
  const decode = eight ? [] : Float32Array.from({ length: 65536 }, (_, bits) => halfToFloat(bits));
  let number = 0, code = 0;
  for (const [name, rows, columns] of tensors) {
    if (!columns) { found[name] = numbers.subarray(number, number += rows); continue; }
    const matrix = found[name] = new Matrix(rows, columns);
    for (let row = 0; row < rows; row++) {
      const scale = eight ? numbers[number++] : 1;
      for (let i = 0, at = matrix.place(row); i < columns; i++, at += 8, code++)
        matrix.values[at] = eight ? codes[code] * scale : decode[codes[code]];
    }
  }
  return found;
}

/** Keys and values of the tokens so far; `traced` also keeps queries and the residual stream, for the inspector. */
class Cache {
  constructor({ n_layers, kv_dim, dim }, positions, traced = false) {
    const each = (width, n = n_layers) => Array.from({ length: n }, () => new Float32Array((positions + 3) * width));
    Object.assign(this, { length: 0, ids: [], k: each(kv_dim), v: each(kv_dim) });
    if (traced) Object.assign(this, { q: each(dim), x: each(dim, n_layers + 1) });
  }
}

class Model {
  constructor(about, bytes) {
    Object.assign(this, about.shape, { about, w: unpack(bytes, about) });
    this.head_dim = this.dim / this.n_heads;
    this.kv_dim = this.n_kv_heads * this.head_dim;
  }

  norm(x, weight) {
    const y = new Float32Array(x.length), n = this.dim;
    for (let o = 0; o < x.length; o += n) {
      let sum = 0;
      for (let i = o; i < o + n; i++) sum += x[i] * x[i];
      const scale = 1 / Math.sqrt(sum / n + this.norm_eps);
      for (let i = 0; i < n; i++) y[o + i] = x[o + i] * scale * weight[i];
    }
    return y;
  }

  /** Rotate the pairs (x0, x1), (x2, x3), ... of every head of x (T, width) by position x frequency, in place. */
  rotate(x, width, start) {
    for (let o = 0, position = start; o < x.length; o += width, position++)
      this.about.frequencies.forEach((frequency, pair) => {
        const angle = Math.fround(position * frequency), cos = Math.cos(angle), sin = Math.sin(angle);
        for (let i = o + 2 * pair; i < o + width; i += this.head_dim) {
          const even = x[i], odd = x[i + 1];
          x[i] = even * cos - odd * sin;
          x[i + 1] = even * sin + odd * cos;
        }
      });
  }

  /** The index of a head's first key and value: several query heads share them. */
  shared(head) {
    return Math.floor(head * this.n_kv_heads / this.n_heads) * this.head_dim;
  }

  /** Attention weights of the query at q[at..] over the first `count` positions: sum 1, zero-padded to fours. */
  looks(q, at, keys, head, count) {
    const { head_dim: D, kv_dim } = this, p = new Float32Array((count + 3) & ~3), scale = 1 / Math.sqrt(D);
    for (let s = 0, k = this.shared(head); s < count; s += 4, k += 4 * kv_dim) {
      let a = 0, b = 0, c = 0, d = 0, k1 = k + kv_dim, k2 = k1 + kv_dim, k3 = k2 + kv_dim;
      for (let i = 0; i < D; i++) {
        const x = q[at + i];
        a += x * keys[k + i]; b += x * keys[k1 + i]; c += x * keys[k2 + i]; d += x * keys[k3 + i];
      }
      p[s] = a * scale; p[s + 1] = b * scale; p[s + 2] = c * scale; p[s + 3] = d * scale;
    }
    p.set(softmax(p.subarray(0, count)));
    return p.fill(0, count);
  }

  /** Attention of queries (T, C) from position `start`; causal unless `ahead`. */
  attention(q, keys, values, start, ahead, isOff) {
    const { dim, head_dim: D, kv_dim } = this, tokens = q.length / dim, out = new Float32Array(q.length);
    for (let t = 0; t < tokens; t++)
      for (let head = 0, o = t * dim; head < this.n_heads; head++, o += D) {
        if (isOff(head)) continue;
        const p = this.looks(q, o, keys, head, ahead ? start + tokens : start + t + 1);
        for (let s = 0, v = this.shared(head); s < p.length; s += 4, v += 4 * kv_dim) {
          const a = p[s], b = p[s + 1], c = p[s + 2], d = p[s + 3], v1 = v + kv_dim, v2 = v1 + kv_dim, v3 = v2 + kv_dim;
          for (let i = 0; i < D; i++)
            out[o + i] += a * values[v + i] + b * values[v1 + i] + c * values[v2 + i] + d * values[v3 + i];
        }
      }
    return out;
  }

  /** The residual stream (T, C) after the last layer. `off`: {ahead, positions, layers: [l], heads: ["l.h"]}. */
  forward(ids, cache, off) {
    const start = cache.length, { dim, kv_dim, n_layers } = this, embeddings = this.w["tok_embeddings.weight"];
    const x = new Float32Array(ids.length * dim), add = (y) => { for (let i = 0; i < x.length; i++) x[i] += y[i]; };
    ids.forEach((id, t) => {
      for (let i = t * dim, at = embeddings.place(id); i < (t + 1) * dim; i++, at += 8) x[i] = embeddings.values[at];
    });
    for (let l = 0; l < n_layers; l++) {
      const w = (name) => this.w[`layers.${l}.${name}.weight`];
      cache.x?.[l].set(x, start * dim);
      if (off.layers.includes(l)) continue;
      let h = this.norm(x, w("attention_norm"));
      const q = w("attention.wq").times(h), k = w("attention.wk").times(h);
      if (!off.positions) { this.rotate(q, dim, start); this.rotate(k, kv_dim, start); }
      cache.q?.[l].set(q, start * dim);
      cache.k[l].set(k, start * kv_dim);
      cache.v[l].set(w("attention.wv").times(h), start * kv_dim);
      const seen = this.attention(q, cache.k[l], cache.v[l], start, off.ahead, (h) => off.heads.includes(`${l}.${h}`));
      add(w("attention.wo").times(seen));
      h = this.norm(x, w("ffn_norm"));
      const gate = w("feed_forward.w1").times(h), up = w("feed_forward.w3").times(h);
      for (let i = 0; i < up.length; i++) up[i] *= gate[i] / (1 + Math.exp(-gate[i]));
      add(w("feed_forward.w2").times(up));
    }
    cache.x?.[n_layers].set(x, start * dim);
    cache.ids.push(...ids);
    cache.length += ids.length;
    return x;
  }

  /** Logits (T, V) of a residual stream (T, C): of the last layer, or of an earlier one (logit lens). */
  logits(x) {
    return this.w["tok_embeddings.weight"].times(this.norm(x, this.w["norm.weight"]));
  }

  /** FLOPs of a token that attends to S positions: with the cache, and without one. */
  flops(S) {
    const { n_layers: L, dim: C, kv_dim, hidden_dim, vocab_size: V } = this;
    const layers = L * C * (2 * C + 2 * kv_dim + 3 * hidden_dim);
    return [2 * (layers + V * C) + 4 * L * C * S, 2 * (layers * S + V * C) + 2 * L * C * S * (S + 1)];
  }
}

function softmax(logits, temperature = 1) {
  const p = new Float64Array(logits.length);
  let most = -Infinity, sum = 0;
  for (let i = 0; i < p.length; i++) most = Math.max(most, logits[i]);
  for (let i = 0; i < p.length; i++) sum += p[i] = Math.exp((logits[i] - most) / temperature);
  for (let i = 0; i < p.length; i++) p[i] /= sum;
  return p;
}

/** Sample the next id. Temperature 0 is greedy; top_k 0 and top_p 1 are off; `random` returns numbers in [0, 1). */
function choose(logits, { temperature, top_k, top_p }, random = Math.random) {
  if (!temperature) return logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
  const p = softmax(logits, temperature), n = p.length, least = top_k ? 0 : (1 - top_p) / n; // below is beyond top_p
  const some = new Float64Array(n), first = top_k ? Math.max(n - top_k, 0) : 0;
  let count = 0, kept = 0, whole = 0;
  for (let i = 0; i < n; i++) if (p[i] >= least) some[count++] = p[i];
  const ordered = some.subarray(0, count).sort(); // the smallest first
  let last = count - 1, total = top_k ? ordered.subarray(first).reduce((a, b) => a + b) : 1;
  while (last > first && (kept += ordered[last]) <= top_p * total) last--; // the token that crosses top_p is kept
  for (let i = 0; i < n; i++) if (p[i] >= ordered[last]) whole += p[i];
  for (let i = 0, mark = random() * whole; i < n; i++) if (p[i] >= ordered[last] && (mark -= p[i]) < 0) return i;
  return p.indexOf(ordered.at(-1)); // rounding errors left no candidate
}
