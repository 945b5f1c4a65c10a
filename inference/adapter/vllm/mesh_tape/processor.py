"""The logits processor: it draws the token itself and leaves vLLM no other choice.

vLLM has two interfaces. That of Model Runner V2 keeps requests in numbered slots and
their tokens on the device; that of the older runner reports changes of the batch, and
tokens are lists of its own. TapeProcessor implements both; vLLM uses one.
"""

from collections import Counter

import numpy as np
import torch

from .request import parse
from .sampler import REACH, Numeric, choose, penalise

_BASES = []
try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as _V2

    _BASES.append(_V2)
except ImportError:  # before vLLM 0.32
    pass
try:
    from vllm.v1.sample.logits_processor import LogitsProcessor as _V1, MoveDirectionality

    _BASES.append(_V1)
except ImportError:
    MoveDirectionality = None
if not _BASES:
    raise ImportError("this vLLM has no interface for logits processors that mesh_tape knows")


class _Row:
    """A row of logits: what is asked for, and where in the answer it is."""

    def __init__(self, request, position, in_prompt, in_output):
        self.tape, _, self.params = request
        self.position, self.in_prompt, self.in_output = position, in_prompt, in_output

    def edits(self, logits):
        """Tokens whose logits change, and their new logits."""
        params, changed = self.params, {}
        if params.penalises():
            tokens = sorted(self.in_prompt.keys() | self.in_output.keys())
            old = logits[torch.tensor(tokens, dtype=torch.long, device=logits.device)].cpu().numpy() if tokens else []
            for t, v in zip(tokens, old):
                changed[t] = penalise(v, params, self.in_prompt[t], self.in_output[t])
        for t, v in params.bias:
            if t < len(logits):
                before = changed[t] if t in changed else np.float32(logits[t].item())
                changed[t] = before + np.float32(v)
        return changed


def draw(logits, places, rows):
    """Masks all tokens but the drawn one, in the rows at these places. Only what is
    near the largest logit leaves the device; the exact work is done in numpy."""
    block = logits[torch.tensor(places, dtype=torch.long, device=logits.device)].to(torch.float32)
    for n, row in enumerate(rows):
        changed = row.edits(block[n])
        if changed:
            at = torch.tensor(list(changed), dtype=torch.long, device=logits.device)
            block[n, at] = torch.from_numpy(np.array(list(changed.values()), np.float32)).to(logits.device)
    heat = torch.tensor([r.params.temperature or 1.0 for r in rows], dtype=torch.float32, device=logits.device)
    scaled = block / heat[:, None]
    near = scaled >= (scaled.amax(dim=1) - (REACH + 0.01))[:, None]
    at, tokens = near.nonzero(as_tuple=True)
    values = block[at, tokens].cpu().numpy()
    at, tokens = at.cpu().numpy(), tokens.cpu().numpy()
    bounds = np.searchsorted(at, np.arange(len(rows) + 1))
    for n, row in enumerate(rows):
        part = slice(bounds[n], bounds[n + 1])
        try:
            token = choose(tokens[part], values[part], block.shape[1], row.params, row.tape, row.position)
        except Numeric:
            continue  # vLLM's argmax stands
        logits[places[n]] = float("-inf")
        logits[places[n], token] = 0.0
    return logits


class _Request:
    """A request of the older runner."""

    def __init__(self, request, prompt, output):
        self.request, self.output = request, output  # vLLM's own list, which grows
        self.counted = 0  # of output
        prompt = list(prompt or ())
        cut = len(prompt) - request[1]
        self.in_prompt, self.in_output = Counter(), Counter()
        if request[2].penalises():
            self.in_prompt, self.in_output = Counter(prompt[:cut]), Counter(prompt[cut:])

    def row(self):
        if self.request[2].penalises():
            self.in_output.update(t for t in self.output[self.counted:] if t >= 0)
            self.counted = len(self.output)
        return _Row(self.request, self.request[1] + len(self.output), self.in_prompt, self.in_output)


class TapeProcessor(*_BASES):
    """Applies the sampling tape to requests that carry one in vllm_xargs."""

    @classmethod
    def validate_params(cls, sampling_params):
        parse(sampling_params.extra_args)

    def __init__(self, vllm_config, second, is_pin_memory=None):
        self.states = second if hasattr(second, "all_token_ids") else None  # V2
        self.rows = {}  # by place in the batch; V2: by slot

    def is_argmax_invariant(self):
        return False  # it decides what the argmax is

    # The older runner.

    def update_state(self, batch_update):
        if batch_update is None:
            return
        for i in batch_update.removed:
            self.rows.pop(i, None)
        for i, params, prompt, output in batch_update.added:
            request = parse(params.extra_args)
            if request is None:
                self.rows.pop(i, None)
            else:
                self.rows[i] = _Request(request, prompt, output)
        for a, b, direction in batch_update.moved:
            at_a, at_b = self.rows.pop(a, None), self.rows.pop(b, None)
            if at_a is not None:
                self.rows[b] = at_a
            if at_b is not None and direction == MoveDirectionality.SWAP:
                self.rows[a] = at_b

    # Model Runner V2.

    def add_request(self, req_idx, sampling_params):
        request = parse(sampling_params.extra_args)
        self.rows.pop(req_idx, None)
        if request is not None:
            self.rows[req_idx] = request
        return request is not None

    def _slots(self, ctx):
        if not any(int(s) in self.rows for s in ctx.idx_mapping_np):
            return [], []
        places, rows = [], []
        slots, positions = torch.stack((ctx.expanded_idx_mapping.long(), ctx.pos.long())).tolist()
        for place, (slot, pos) in enumerate(zip(slots, positions)):
            request = self.rows.get(slot)
            if request is None:
                continue
            cut = int(self.states.prompt_len.np[slot]) - request[1]
            in_prompt, in_output = Counter(), Counter()
            if request[2].penalises():
                tokens = self.states.all_token_ids.gpu[slot, : pos + 1].tolist()
                in_prompt, in_output = Counter(tokens[:cut]), Counter(tokens[cut:])
            places.append(place)
            rows.append(_Row(request, pos + 1 - cut, in_prompt, in_output))
        return places, rows

    def apply(self, logits, ctx=None):
        if ctx is not None:
            places, rows = self._slots(ctx)
        else:
            places = sorted(self.rows)
            rows = [self.rows[i].row() for i in places]
        return draw(logits, places, rows) if rows else logits
