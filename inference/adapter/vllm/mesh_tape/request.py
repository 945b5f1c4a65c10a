"""What a Mesh host sends with a request, in vllm_xargs."""

import math

from .sampler import Sampling

_NUMBERS = {
    "mesh_temperature": ("temperature", 0, 2), "mesh_top_p": ("top_p", 0, 1), "mesh_min_p": ("min_p", 0, 1),
    "mesh_repetition": ("repetition", 0, 10), "mesh_frequency": ("frequency", -2, 2), "mesh_presence": ("presence", -2, 2),
}


_KNOWN = {"mesh_tape", "mesh_prefix", "mesh_top_k", "mesh_bias_tokens", "mesh_bias_values", *_NUMBERS}


def parse(extra):
    """(tape key, prefix length, Sampling), or None for requests without a tape.
    Raises ValueError, which vLLM answers with HTTP 400."""
    if not extra or "mesh_tape" not in extra:
        return None
    unknown = [name for name in extra if name.startswith("mesh_") and name not in _KNOWN]
    if unknown:
        raise ValueError(f"{unknown[0]}: this version does not know it")
    tape = extra["mesh_tape"]
    try:
        key = bytes.fromhex(tape)
    except (TypeError, ValueError):
        key = b""
    if len(key) != 32:
        raise ValueError("mesh_tape: want 64 hex digits")
    prefix = _whole(extra, "mesh_prefix", 1 << 31)
    params = Sampling(top_k=_whole(extra, "mesh_top_k", 1 << 32))
    for name, (field, low, high) in _NUMBERS.items():
        v = extra.get(name, 0)
        if isinstance(v, bool) or not isinstance(v, (int, float)) or not low <= v <= high:
            raise ValueError(f"{name}: want a number from {low} to {high}")
        setattr(params, field, v)
    if 0 < params.temperature < 1e-3:
        raise ValueError("mesh_temperature: want 0 or at least 0.001")
    tokens, values = extra.get("mesh_bias_tokens", []), extra.get("mesh_bias_values", [])
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values) or len(tokens) > 1024:
        raise ValueError("mesh_bias_tokens, mesh_bias_values: want two lists of equal length")
    for token, value in zip(tokens, values):
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise ValueError("mesh_bias_tokens: want token ids")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.fabs(value) <= 100:
            raise ValueError("mesh_bias_values: want numbers from -100 to 100")
    params.bias = tuple(zip(tokens, values))
    return key, prefix, params


def _whole(extra, name, limit):
    v = extra.get(name, 0)
    if isinstance(v, bool) or not isinstance(v, int) or not 0 <= v < limit:
        raise ValueError(f"{name}: want a number from 0 to {limit - 1}")
    return v
