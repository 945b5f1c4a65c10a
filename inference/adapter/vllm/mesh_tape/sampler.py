"""The choice of a token as Mesh defines it: a pure function of logits, parameters,
tape key and position. docs/numerics.md is the definition; the names follow it.

All arithmetic is IEEE-754 binary32, written so that no library rounds otherwise:
numpy's exp and log are not used.
"""

from dataclasses import dataclass

import numpy as np

F32, F64, U64 = np.float32, np.float64, np.uint64

# A token whose scaled logit is this far below the largest has weight 0 in every
# filter, and no Gumbel value (-2.9 to 22.9) lets it win.
REACH = 28.0

LOG2E = F32(float.fromhex("0x1.715476p+0"))
LN2_HIGH = F32(float.fromhex("0x1.62e43p-1"))
LN2_LOW = F32(float.fromhex("-0x1.05c610p-29"))
ROUNDER = F32(float.fromhex("0x1.8p23"))
EXP_C = [F32(float.fromhex(s)) for s in (
    "0x1.6d10fep-10", "0x1.120b64p-7", "0x1.55551ap-5", "0x1.5554dep-3", "0x1p-1", "0x1p0", "0x1p0")]
LOG_C = [F32(float.fromhex(s)) for s in (
    "0x1.555554p-2", "-0x1.fffffcp-3", "0x1.999d5ap-3", "-0x1.555b4ap-3", "0x1.23d214p-3", "-0x1.fcf4a8p-4",
    "0x1.dea2c0p-4", "-0x1.d636d0p-4", "0x1.1d8f60p-4")]


class Numeric(ValueError):
    """A logit is not a number, or infinite."""


def fma(a, b, c):
    """a*b + c with one rounding, for arrays of float32. The product is exact in
    float64; the sum is rounded to odd there, so that rounding it again is harmless."""
    a, b, c = (np.asarray(v, F32).astype(F64) for v in (a, b, c))
    p = a * b
    s, c = np.broadcast_arrays(p + c, c)
    back = s - p
    error = (p - (s - back)) + (c - back)
    bits = np.ascontiguousarray(s).view(np.int64)
    odd = (error != 0) & (bits & 1 == 0) & np.isfinite(s)
    bits = np.where(odd, bits + np.where((error > 0) == (s > 0), 1, -1), bits)
    return bits.view(F64).astype(F32)


def exp(x):
    """e^x for x <= 0."""
    x = np.asarray(x, F32)
    n = fma(x, LOG2E, ROUNDER) - ROUNDER
    r = fma(-n, LN2_HIGH, x)
    r = fma(-n, LN2_LOW, r)
    p = np.full_like(r, EXP_C[0])
    for c in EXP_C[1:]:
        p = fma(p, r, c)
    k = n.astype(np.int32)
    half = k >> 1
    power = lambda v: ((v + 127).astype(np.uint32) << np.uint32(23)).view(F32)
    low = x < F32(-87.33)
    half, k = np.where(low, 0, half), np.where(low, 0, k)
    return np.where(low, F32(0), p * power(half) * power(k - half))


def log(x):
    """The natural logarithm of normal positive x."""
    b = np.ascontiguousarray(x, F32).view(np.uint32) + np.uint32(0x3F800000 - 0x3F3504F3)
    k = ((b >> np.uint32(23)).astype(np.int32) - 127).astype(F32)
    f = ((b & np.uint32(0x7FFFFF)) + np.uint32(0x3F3504F3)).view(F32) - F32(1)
    z = f * f
    q = np.full_like(f, LOG_C[8])
    for c in LOG_C[7::-1]:
        q = fma(q, f, c)
    y = f * z * q
    y = fma(k, LN2_LOW, y)
    y = fma(F32(-0.5), z, y)
    return fma(k, LN2_HIGH, f + y)


def log1p(x):
    u = F32(1) + x
    return log(u) + (x - (u - F32(1))) / u


def gumbel(r):
    """-log(-log1p(-v)), v = min(max(float32(r), 0.5) * 2^-32, 1 - 2^-24)."""
    v = np.maximum(r.astype(F32), F32(0.5)) * F32(2.0**-32)
    v = np.minimum(v, F32(1 - 2.0**-24))
    return -log(-log1p(-v))


def philox(key, counters):
    """Philox4x32-10 on counters [n, 4] of uint32."""
    k0, k1 = int(key[0]), int(key[1])
    c0, c1, c2, c3 = (counters[:, i].astype(U64) for i in range(4))
    mask, shift = U64(0xFFFFFFFF), U64(32)
    for _ in range(10):
        p0, p1 = U64(0xD2511F53) * c0, U64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ U64(k0), p1 & mask, (p0 >> shift) ^ c3 ^ U64(k1), p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def tape_words(tape, position, ids):
    """The 32 random bits of each token id at one output position."""
    word = np.frombuffer(tape, dtype="<u4")
    counters = np.empty((len(ids), 4), np.uint32)
    counters[:, 0] = ids // 4
    counters[:, 1] = position
    counters[:, 2], counters[:, 3] = word[2], word[3]
    return philox(word[:2], counters)[np.arange(len(ids)), ids % 4]


@dataclass
class Sampling:
    temperature: float = 0.0  # 0: the largest logit
    top_k: int = 0
    top_p: float = 0.0
    min_p: float = 0.0
    repetition: float = 0.0
    frequency: float = 0.0
    presence: float = 0.0
    bias: tuple = ()  # (token, value)

    def penalises(self):
        return self.repetition not in (0, 1) or self.frequency != 0 or self.presence != 0


def penalise(logit, params, in_prompt, in_output):
    """One token's logit after repetition, frequency and presence penalty."""
    logit = F32(logit)
    if params.repetition not in (0, 1) and (in_prompt > 0 or in_output > 0):
        logit = logit / F32(params.repetition) if logit > 0 else logit * F32(params.repetition)
    if in_output > 0:
        logit = logit - F32(params.frequency) * F32(in_output)
        logit = logit - F32(params.presence)
    return logit


def choose(ids, logits, vocabulary, params, tape, position):
    """The token among ids (ascending; all that can matter) with these logits, after
    penalties and bias."""
    if len(ids) == 0 or np.isnan(logits).any() or logits.max() == np.inf:
        raise Numeric("logits that are not finite")
    if params.temperature == 0:
        return int(ids[np.argmax(logits)])
    x = logits / F32(params.temperature)
    most = x.max()
    near = x >= most - F32(REACH)
    ids, x = ids[near], x[near]
    keep = np.ones(len(ids), bool)
    top_k = 0 < params.top_k < vocabulary
    top_p = 0 < params.top_p < 1
    if top_k or top_p or params.min_p > 0:
        weights = (exp(x - most) * F32(2.0**40)).astype(np.int64)
        order = np.lexsort((ids, -weights))
        if top_k:
            order = order[: params.top_k]
        if top_p:
            share = int(float(F32(params.top_p)) * 2.0**32)
            sums = np.cumsum(weights[order])  # below 2^63: at most 2^18 tokens
            want = share * int(sums[-1])
            enough = next(i for i, s in enumerate(sums) if int(s) << 32 >= want)
            order = order[: enough + 1]
        keep[:] = False
        keep[order] = True
        if params.min_p > 0:
            keep &= weights >= int(float(F32(params.min_p)) * 2.0**40)
    ids, x = ids[keep], x[keep]
    return int(ids[np.argmax(x + gumbel(tape_words(tape, position, ids)))])


def sample(logits, params, counts, tape, position):
    """The token for a whole row of logits. counts are (token, times in the prompt,
    times in the output)."""
    logits = np.array(logits, F32)
    if params.penalises():
        for token, in_prompt, in_output in counts:
            logits[token] = penalise(logits[token], params, in_prompt, in_output)
    for token, value in params.bias:
        logits[token] = logits[token] + F32(value)
    return choose(np.arange(len(logits)), logits, len(logits), params, tape, position)
