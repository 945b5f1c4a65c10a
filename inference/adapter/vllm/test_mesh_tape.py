"""python3 -m unittest, in this folder. numpy is needed; torch for the processor's own
tests, which are skipped without it. vLLM is not: its interface is stood in for."""

import enum
import hashlib
import math
import pathlib
import sys
import types
import unittest
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from mesh_tape.request import parse
from mesh_tape.sampler import F32, Sampling, exp, fma, gumbel, log, philox, sample

try:
    import torch
except ImportError:
    torch = None

GOLDEN = {}
for line in (pathlib.Path(__file__).parents[2] / "kernel/testdata/mk1.txt").read_text().splitlines():
    name, count, digest, *_ = line.split()
    GOLDEN[name] = (int(count), digest)


def digest(values):
    return hashlib.sha256(np.asarray(values, "<f4").tobytes()).hexdigest()


def words(stream, n):
    """The inputs of the golden vectors, see inference/kernel/selftest.go."""
    counters = np.zeros(((n + 3) // 4, 4), np.uint32)
    counters[:, 0] = np.arange(len(counters))
    return philox((stream, 0), counters).reshape(-1)[:n]


def gumbel_stream():
    for stream in range(1, 400):
        if digest(gumbel(words(stream, 1000))) == GOLDEN["gumbel"][1]:
            return stream
    raise AssertionError("no stream of inputs gives the golden Gumbel values")


CASES = {
    "greedy": Sampling(), "temperature": Sampling(temperature=0.8), "top-k": Sampling(temperature=1.5, top_k=12),
    "top-p": Sampling(temperature=1, top_p=0.7), "min-p": Sampling(temperature=2, min_p=0.3),
    "all": Sampling(temperature=1.1, top_k=200, top_p=0.9, min_p=0.01, repetition=1.2, frequency=0.3, presence=-0.4,
                    bias=((40, 2.5), (41, -3.0))),
}
COUNTS = [(5, 2, 0), (17, 0, 3), (2999, 1, 1)]
TAPE = bytes(i * 11 & 255 for i in range(32))


def golden_logits():
    return words(gumbel_stream() + 1, 3000).view(np.int32).astype(F32) * F32(2.0 ** (3 - 31))


class Pure(unittest.TestCase):
    def test_philox(self):
        f = 0xFFFFFFFF
        for key, counter, want in [
            ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
            ((f, f), (f, f, f, f), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
            ((0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
             (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
        ]:
            got = philox(key, np.array([counter], np.uint32))[0]
            self.assertEqual(tuple(int(v) for v in got), want)

    def test_fma(self):
        rng = np.random.default_rng(1)
        a, b, c = (rng.standard_normal(600).astype(F32) * F32(2.0) ** rng.integers(-20, 20, 600).astype(F32) for _ in range(3))
        c[::3] = -(a[::3] * b[::3])  # cancellation
        got = fma(a, b, c)
        for i in range(len(a)):
            exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
            best = min((F32(got[i]), np.nextafter(got[i], F32(np.inf)), np.nextafter(got[i], F32(-np.inf))),
                       key=lambda v: (abs(Fraction(float(v)) - exact), int(np.array(v, F32).view(np.uint32)) & 1))
            self.assertEqual(float(best), float(got[i]), (a[i], b[i], c[i]))

    def test_elementary(self):
        x = np.linspace(-87, 0, 4001).astype(F32)
        np.testing.assert_allclose(exp(x), np.exp(x.astype(np.float64)), rtol=2e-7)
        self.assertEqual(exp(np.array([-90], F32))[0], 0)
        y = np.exp(np.linspace(-80, 80, 4001)).astype(F32)
        np.testing.assert_allclose(log(y), np.log(y.astype(np.float64)), rtol=2e-7, atol=1e-9)

    def test_golden(self):
        logits = golden_logits()
        for name, params in CASES.items():
            count, want = GOLDEN["sample-" + name]
            got = [sample(logits, params, COUNTS, TAPE, p) for p in range(count)]
            self.assertEqual(digest(got), want, name)

    def test_distribution(self):
        logits = np.array([0, 1, 2, 0.5, -1, 1.5], F32)
        n, seen = 1500, np.zeros(6)
        for i in range(n):
            seen[sample(logits, Sampling(temperature=0.8), (), bytes(32), i)] += 1
        p = np.exp(logits / 0.8)
        p /= p.sum()
        self.assertTrue((np.abs(seen / n - p) < 5 * np.sqrt(p / n)).all(), seen / n)


class Request(unittest.TestCase):
    good = {"mesh_tape": "ab" * 32, "mesh_prefix": 3, "mesh_temperature": 0.5, "mesh_bias_tokens": [1], "mesh_bias_values": [2.5]}

    def test_parse(self):
        self.assertIsNone(parse(None))
        self.assertIsNone(parse({"other": 1}))
        key, prefix, params = parse(self.good)
        self.assertEqual((key, prefix, params.temperature, params.bias), (b"\xab" * 32, 3, 0.5, ((1, 2.5),)))

    def test_refuse(self):
        for change in (
            {"mesh_tape": "probe"}, {"mesh_tape": 5}, {"mesh_prefix": -1}, {"mesh_prefix": "x"}, {"mesh_temperature": 3},
            {"mesh_temperature": 1e-5}, {"mesh_top_p": math.nan}, {"mesh_top_k": 1.5}, {"mesh_bias_tokens": [1, 2]},
            {"mesh_bias_tokens": [-1]}, {"mesh_bias_values": [1000]}, {"mesh_bias_values": "x"}, {"mesh_min_p": True}, {"mesh_colour": 1},
        ):
            with self.assertRaisesRegex(ValueError, "mesh_", msg=str(change)):
                parse({**self.good, **change})


def vllm_stand_in():
    """The parts of vLLM that the processor uses."""
    import abc

    class V1(abc.ABC):
        @abc.abstractmethod
        def __init__(self, vllm_config, device, is_pin_memory): ...

        @abc.abstractmethod
        def apply(self, logits): ...

        @abc.abstractmethod
        def is_argmax_invariant(self): ...

        @abc.abstractmethod
        def update_state(self, batch_update): ...

    class V2(abc.ABC):
        def __init__(self, vllm_config, req_states): ...

        @abc.abstractmethod
        def apply(self, logits, ctx): ...

    for name, part in (
        ("vllm.v1.sample.logits_processor", {"LogitsProcessor": V1, "MoveDirectionality": enum.Enum("MoveDirectionality", "UNIDIRECTIONAL SWAP")}),
        ("vllm.v1.worker.gpu.sample.logits_processor", {"LogitsProcessor": V2}),
    ):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        for key, value in part.items():
            setattr(sys.modules[name], key, value)
    return sys.modules["vllm.v1.sample.logits_processor"]


@dataclass
class Params:
    extra_args: dict | None = None


@dataclass
class Update:
    removed: list = field(default_factory=list)
    added: list = field(default_factory=list)
    moved: list = field(default_factory=list)


def arguments(p, prefix=0):
    return {"mesh_tape": TAPE.hex(), "mesh_prefix": prefix, "mesh_temperature": p.temperature, "mesh_top_k": p.top_k, "mesh_top_p": p.top_p,
            "mesh_min_p": p.min_p, "mesh_repetition": p.repetition, "mesh_frequency": p.frequency, "mesh_presence": p.presence,
            "mesh_bias_tokens": [t for t, _ in p.bias], "mesh_bias_values": [v for _, v in p.bias]}


@unittest.skipIf(torch is None, "torch is not installed")
class Processor(unittest.TestCase):
    def setUp(self):
        try:
            import vllm.v1.sample.logits_processor as interface
        except ImportError:
            interface = vllm_stand_in()
        import mesh_tape

        self.direction = interface.MoveDirectionality
        self.processor = mesh_tape.TapeProcessor(None, torch.device("cpu"), False)
        self.logits = golden_logits()

    def draw(self, rows):
        block = torch.from_numpy(np.stack([self.logits] * rows).copy())
        out = self.processor.apply(block)
        return [int(r.argmax()) if torch.isinf(r).sum() == len(r) - 1 else None for r in out]

    def test_batch(self):
        prompt, given = [5, 5, 2999], [17, 17, 17, 2999]
        counts = [(5, 2, 0), (17, 0, 3), (2999, 1, 1)]
        outputs, added = [], []
        for i, p in enumerate(CASES.values()):
            # Half of what was given out is the prefix of another host.
            outputs.append(list(given[2:]))
            added.append((i, Params(arguments(p, 2)), prompt + given[:2], outputs[-1]))
        added.append((len(added), Params(), [1], []))
        self.processor.update_state(Update(added=added))
        for step in range(5):
            want = [sample(self.logits, p, counts, TAPE, 4 + step) for p in CASES.values()]
            got = self.draw(len(added))
            self.assertEqual(got, want + [None])
            self.processor.update_state(None)
            for o, p in zip(outputs, CASES.values()):
                o.append(7)
            counts = [c for c in counts if c[0] != 7] + [(7, 0, step + 1)]

    def test_moves(self):
        tapes = {i: arguments(Sampling(temperature=1.0), prefix=i) for i in range(4)}
        want = [sample(self.logits, Sampling(temperature=1.0), (), TAPE, i) for i in range(4)]
        self.processor.update_state(Update(added=[(i, Params(tapes[i]), [0] * 9, []) for i in range(3)]))
        self.assertEqual(self.draw(3), want[:3])
        self.processor.update_state(Update(moved=[(0, 2, self.direction.SWAP)]))
        self.assertEqual(self.draw(3), [want[2], want[1], want[0]])
        self.processor.update_state(Update(removed=[1], moved=[(2, 1, self.direction.UNIDIRECTIONAL)]))
        self.assertEqual(self.draw(3), [want[2], want[0], None])
        self.processor.update_state(Update(added=[(0, Params(), [1], []), (2, Params(tapes[3]), [0] * 9, [])]))
        self.assertEqual(self.draw(3), [None, want[0], want[3]])

    def test_not_finite(self):
        self.processor.update_state(Update(added=[(0, Params(arguments(Sampling(temperature=1.0))), [1], [])]))
        block = torch.tensor([[1.0, float("nan"), 2.0]])
        self.assertTrue(torch.equal(self.processor.apply(block.clone()).nan_to_num(), block.nan_to_num()))
        masked = torch.full((1, 50), float("-inf"))
        masked[0, 7] = -3.0
        self.assertEqual(int(self.processor.apply(masked).argmax()), 7)

    def test_slots(self):
        """Model Runner V2: rows in any order, tokens on the device."""
        import mesh_tape

        prompt, given = [5, 5, 2999], [17, 17, 17, 2999]
        counts = [(5, 2, 0), (17, 0, 3), (2999, 1, 1)]
        tokens = torch.zeros((9, 32), dtype=torch.int32)
        tokens[:, :7] = torch.tensor(prompt + given)
        held = np.full(9, 5)  # two tokens of the prefix are part of the prompt
        states = types.SimpleNamespace(all_token_ids=types.SimpleNamespace(gpu=tokens), prompt_len=types.SimpleNamespace(np=held))
        processor = mesh_tape.TapeProcessor(None, states)
        slots = [8, 2, 5, 0, 7, 1]
        for slot, p in zip(slots, CASES.values()):
            self.assertTrue(processor.add_request(slot, Params(arguments(p, 2))))
        self.assertFalse(processor.add_request(3, Params()))
        order = [slots[4], 3, slots[0], slots[5], slots[1], slots[3], slots[2]]
        ctx = types.SimpleNamespace(
            expanded_idx_mapping=torch.tensor(order, dtype=torch.int32), idx_mapping_np=np.array(order), pos=torch.full((7,), 6))
        out = processor.apply(torch.from_numpy(np.stack([self.logits] * 7).copy()), ctx)
        want = {slot: sample(self.logits, p, counts, TAPE, 4) for slot, p in zip(slots, CASES.values())}
        for row, slot in zip(out, order):
            if slot == 3:
                self.assertFalse(torch.isinf(row).any())
            else:
                self.assertEqual((int(row.argmax()), int(torch.isinf(row).sum())), (want[slot], 2999))
        processor.add_request(slots[0], Params())  # the slot is used again
        ctx = types.SimpleNamespace(expanded_idx_mapping=torch.tensor([slots[0]]), idx_mapping_np=np.array([slots[0]]), pos=torch.tensor([6]))
        row = torch.from_numpy(self.logits.copy())[None]
        self.assertTrue(torch.equal(processor.apply(row.clone(), ctx), row))

    def test_validate(self):
        import mesh_tape

        mesh_tape.TapeProcessor.validate_params(Params())
        with self.assertRaisesRegex(ValueError, "mesh_tape"):
            mesh_tape.TapeProcessor.validate_params(Params({"mesh_tape": "probe"}))


if __name__ == "__main__":
    unittest.main()
