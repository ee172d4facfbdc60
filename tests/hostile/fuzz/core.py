"""Calls of jpo._core with arguments that its wrappers never pass."""

import math

import numpy as np

from jpo import _core
from jpo.formats import load_checkpoint

ALLOWED = (ValueError, TypeError, RuntimeError, MemoryError, OverflowError, NotImplementedError)
SIZES = (0, 1, 2, 3, 5, 8, 31, 32, 33, 64, 100, 257)
MOST = 257 * 257  # elements of an array of a random shape
COUNTS = (-1, 0, 1, 2, 3, 7, 32, 64, 200, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63))


class Calls:
    """A model, and functions with makers of their arguments; one case is a few calls in a row on the same model."""

    def __init__(self):
        checkpoint = load_checkpoint("tiny")
        self.config = dict(checkpoint.config)
        self.tensors = {
            name: (part.dtype, np.ascontiguousarray(part.data)) for name, part in checkpoint.tensors.items()
        }
        self.model = None
        self.isa = _core.system_info()["isa"]

    # ---- arguments

    def number(self, rng):
        return rng.choice((*COUNTS, 0.5, float("nan"), None, "F32", b"x", [], np.int64(2)))

    def flag(self, rng):
        return rng.choice((True, False, 0, 1, None, 2))

    def shape(self, rng):
        """One to three of the sizes, of at most MOST elements: what the harness makes is no growth of the engine's."""
        shape = [rng.choice(SIZES) for _ in range(rng.choice((1, 2, 2, 3)))]
        while math.prod(shape) > MOST:
            shape[shape.index(max(shape))] = 1
        return tuple(shape)

    def floats(self, rng, *shape, kind=np.float32):
        """Mostly the array that is wanted; else one of another shape, order, type, byte order or place."""
        shape = shape or self.shape(rng)
        x = np.full(shape, rng.choice((0.0, 1.0, -3.0, 1e30, float("nan"), float("inf"))), kind)
        fault = rng.randrange(24)
        if fault == 0:
            return x.astype(x.dtype.newbyteorder())
        if fault == 1:
            return np.asfortranarray(x)
        if fault == 2:
            return x[..., ::2]
        if fault == 3:
            return x[::-1]
        if fault == 4:
            return x.astype(rng.choice((np.float16, np.float64, np.int32, bool, "U1")))
        if fault == 5:
            return x.reshape(-1)
        if fault == 6:
            return rng.choice((lambda: None, lambda: 3, lambda: "x", x.tolist, list, object))()
        if fault == 7:
            x.flags.writeable = False
        if fault == 8:
            return np.broadcast_to(x[:1], x.shape) if x.ndim else x
        if fault == 9:
            return np.zeros(x.nbytes + 1, np.uint8)[1:].view(kind).reshape(x.shape)
        return x

    def integers(self, rng, count, low, high, kind=np.int32):
        """Mostly in range; else one value outside, another length, rank or type."""
        values = np.array(rng.choices(range(low, max(low, high) + 1), k=count), dtype=kind)
        fault = rng.randrange(20)
        if fault == 0 and count:
            values[rng.randrange(count)] = rng.choice((-1, high + 1, np.iinfo(kind).max, np.iinfo(kind).min))
        if fault == 1:
            return values[:-1]
        if fault == 2:
            return values[None]
        if fault == 3:
            return values.astype(rng.choice((np.float32, np.int64, np.uint8, ">i4")))
        if fault == 4:
            return rng.choice((None, "ab", [], [1 << 40], [None], object()))
        if fault == 5:
            return np.repeat(values, rng.choice((2, 50)))
        return values

    def forest(self, rng):
        rows = rng.choice((0, 1, 2, 5, 40, 300))
        cuts, at, parent = [], 0, -1
        while at < rows:
            length = rng.randint(1, rows - at)
            first = cuts[parent][1] + cuts[parent][3] if parent >= 0 else 0
            cuts.append([at, length, parent, first])
            at += length
            parent = rng.randint(-1, len(cuts) - 1)
        segments = np.array(cuts, dtype=np.int32).reshape(-1, 4)
        if len(cuts) and rng.random() < 0.2:
            segments[rng.randrange(len(cuts)), rng.randrange(4)] = rng.choice((-2, -1, 0, 1, 3000, 1 << 30, -(1 << 31)))
        if rng.random() < 0.05:
            segments = segments[:, : rng.choice((0, 1, 3))]
        entries = rng.choice((0, 1, 5, 60))
        row = np.sort(np.array([rng.randrange(max(rows, 1)) for _ in range(entries)], dtype=np.int32))
        if entries and rng.random() < 0.1:
            row[rng.randrange(entries)] = rng.choice((-1, rows, 1 << 30))
        return self.integers(rng, rows, 0, 511), segments, row, self.integers(rng, entries, 0, 511)

    # ---- calls

    def make(self, rng):
        config, tensors = dict(self.config), dict(self.tensors)
        if rng.random() < 0.5:
            key = rng.choice(list(config))
            config[key] = rng.choice((*COUNTS, 0.5, None, "x", float("nan"), [1.0] * 8))
        if rng.random() < 0.3:
            name = rng.choice(list(tensors))
            kind, array = tensors[name]
            tensors[name] = rng.choice((
                None, (kind,), (kind, array[:-1]), ("Q8_0", array), ("", array), (kind, array[::-1]), [kind, array],
                (kind, array.view(np.uint8)), (None, array),
            ))  # fmt: skip
        self.model = _core.Model(config, tensors, *rng.choice(((), (0,), (1,), (2,), (3,), (-1,), (1 << 31,))))

    def pass_(self, rng):
        keep = rng.random() < 0.6
        arguments = self.forest(rng)
        self.model.forward(
            *arguments, self.flag(rng), keep, self.flag(rng), self.flag(rng), rng.choice((0, 1, 1 << 64, -1))
        )
        if keep and rng.random() < 0.8:
            count = len(arguments[2]) if rng.random() < 0.9 else rng.choice(SIZES)
            self.model.backward(self.floats(rng, count, kind=np.float64))

    def read(self, rng):
        method = rng.choice((self.model.hidden, self.model.logits))
        method(self.integers(rng, rng.choice((0, 1, 3)), 0, rng.choice((0, 4, 299))))

    def plan(self, rng):
        self.model.plan(*self.forest(rng), self.flag(rng))

    def decode(self, rng):
        rows, capacity = rng.choice((0, 1, 2, 5, 33)), rng.choice((0, 1, 8, 64))
        shape = (3, capacity, 32) if rng.random() < 0.9 else (rng.choice(SIZES), capacity, 32)
        streams = rng.choice((1, max(rows, 1)))
        segments = [[i * rows // streams, max(rows // streams, 1), i, 1] for i in range(streams)]
        if rng.random() < 0.3:
            segments[rng.randrange(len(segments))][rng.randrange(4)] = rng.choice((-1, 0, 2, 1 << 30, -(1 << 31)))
        ranges = [[0, rng.choice((capacity, rows, 1))] for _ in range(streams)]
        if rng.random() < 0.3:
            ranges[rng.randrange(len(ranges))][rng.randrange(2)] = rng.choice((-1, 0, capacity, (1 << 31) - 1))
        self.model.decode(
            self.floats(rng, *shape),
            self.floats(rng, *shape),
            self.integers(rng, rows, 0, 511),
            np.arange(rows, dtype=np.int32) if rng.random() < 0.7 else self.integers(rng, rows, 0, 2047),
            self.integers(rng, rows, 0, max(capacity - 1, 0)),
            np.array(segments, dtype=np.int64),
            np.array(ranges, dtype=np.int64),
            self.integers(rng, rng.choice((0, 1, rows)), 0, max(rows - 1, 0)),
            self.flag(rng),
        )

    def adapt(self, rng):
        size = rng.choice((0, 100, 1 << 12, 1 << 14))
        places = [
            (rng.choice((0, 1, 2, 3, -1)), rng.choice((0, 1, 6, 7, -1)), rng.choice((1, 2, 4, 0, 1 << 40)), 1.0,
             rng.choice((0.0, 0.5, 1.0, float("nan"))), rng.choice((0, 64, size, -1, 1 << 62)), rng.choice((0, 256, size)))
            for _ in range(rng.choice((0, 1, 3)))
        ]  # fmt: skip
        if rng.random() < 0.1:
            places = [rng.choice((None, (), (0,) * 7, [0] * 7, 3))]
        self.model.set_lora(self.floats(rng, size), self.floats(rng, size), places)

    def full(self, rng):
        sizes = {name: array.nbytes // 4 for name, (_, array) in self.tensors.items()}
        offsets, at = {}, 0
        for name, size in sizes.items():
            offsets[name] = at
            at += size
        if rng.random() < 0.4:
            offsets[rng.choice(list(offsets))] = rng.choice((*COUNTS, None, "x", 0.5))
        if rng.random() < 0.1:
            offsets.pop(rng.choice(list(offsets)))
        self.model.set_full(self.floats(rng, at), self.floats(rng, at), offsets)

    def small(self, rng):
        rng.choice((
            lambda: self.model.clear(), lambda: self.model.trim(), lambda: self.model.profile(self.flag(rng)),
            lambda: self.model.set_recompute(self.flag(rng)), lambda: _core.set_num_threads(rng.choice((1, 2, 3, 0, None))),
            lambda: _core.set_isa(rng.choice((self.isa, "generic", "avx2", "x", None))),
        ))()  # fmt: skip

    def kernels(self, rng):
        rows, columns, hidden = rng.choice(SIZES), rng.choice(SIZES), rng.choice(SIZES)
        kind = rng.choice((0, 1, 2, 3, -1, 9))
        kinds = {0: np.float32, 1: np.uint16, 2: np.uint16, 3: np.float64}
        z = self.floats(rng, rows, columns)
        if isinstance(z, np.ndarray) and kind in kinds and rng.random() < 0.9:
            z = z.astype(kinds[kind])
        at = self.integers(rng, rows, 0, rows - 1, np.int64), self.integers(rng, rows, 0, columns - 1, np.int64)
        c = self.floats(rng, rows, kind=np.float64)
        h, w = self.floats(rng, rows, hidden), self.floats(rng, columns, hidden)
        index = np.arange(rows, dtype=np.int32), self.integers(rng, rows, 0, columns - 1)
        rng.choice((
            lambda: _core.logits_logps(z, kind, *at),
            lambda: _core.logits_grad(self.floats(rng, rows, columns), z, kind, *at, c),
            lambda: _core.head_logps(h, w, kind if kind else 0, index[1], index[0]),
            lambda: _core.head_grad(h, w, 0, index[1], index[0], c),
            lambda: _core.draw(self.floats(rng, rows, columns), self.floats(rng, rows, kind=np.float64) * 0,
                               rng.choice((0.0, 1.0, 0.7, -1.0, float("nan"))), rng.choice((0, 5, -1, 1 << 40)),
                               rng.choice((1.0, 0.9, 0.0, float("nan")))),
            lambda: _core.grad_norm(self.floats(rng)),
        ))()  # fmt: skip

    def products(self, rng):
        m, n, k = (rng.choice(SIZES) for _ in range(3))
        kind = rng.choice(("F32", "F32", "BF16", "F16", "Q8_0", "Q4_0", "Q4_1", "Q6_K", "F64", ""))
        per = {"F32": 4, "BF16": 2, "F16": 2, "Q8_0": 34 / 32, "Q4_0": 18 / 32, "Q4_1": 20 / 32, "Q6_K": 210 / 256}
        data = np.zeros(int(n * k * per.get(kind, 4)), np.uint8)
        if rng.random() < 0.1:
            n, k = rng.choice(COUNTS), rng.choice((k, *COUNTS))
        compute = rng.choice(("float32", "int16", "bfloat16", "x"))
        out, x = self.floats(rng, m, max(min(n, 300), 0)), self.floats(rng, m, max(min(k, 300), 0))
        way = rng.choice(("forward", "backward", ""))
        tile = [rng.choice((0, 0, 32, n, *COUNTS)), rng.choice((n, 1, *COUNTS)), rng.choice((0, 0, 32, k, *COUNTS)), k]
        rng.choice((
            lambda: _core._linear_product(out, x, data, n, k, kind, compute, way, self.flag(rng)),
            lambda: _core._packed_tile(out, x, data, n, k, kind, compute, *tile, self.flag(rng), self.flag(rng)),
            lambda: _core.widen_rows(self.floats(rng, rng.choice(SIZES), max(min(k, 300), 0)), data, n, k, kind, rng.choice(COUNTS)),
            lambda: _core._sgemm(out, x, self.floats(rng, max(min(n, 300), 0), max(min(k, 300), 0)), False, True, 1.0, 0.0),
            lambda: _core._linear_backward_weight(self.floats(rng, max(min(n, 300), 0), max(min(k, 300), 0)), out, x),
            lambda: _core.measure_gflops(compute, rng.choice((1, 64, -1)), rng.choice((32, 0)), rng.choice((1, 1 << 40)), kind, way, 1),
        ))()  # fmt: skip

    def losses(self, rng):
        n = rng.choice((0, 1, 3, 8))
        loss = rng.choice((*range(len(_core.LOSSES)), -1, 1000))
        vectors = [self.floats(rng, n, kind=np.float64) if rng.random() < 0.9 else None for _ in range(6)]
        weights = self.floats(rng, n, n, kind=np.float64) if rng.random() < 0.5 else None
        groups = self.integers(rng, n, 0, 3, np.int64) if rng.random() < 0.5 else None
        scalars = [rng.choice((0.1, 0.0, -1.0, 1e308, float("nan"), float("inf"))) for _ in range(9)]
        _core.preference(loss, *vectors, weights, groups, *scalars, rng.choice((0, 1, 2, 3, 4, -1)), self.flag(rng))

    def case(self, rng):
        """(description, calls): a few names of methods."""
        ways = ("make", "pass_", "read", "plan", "decode", "adapt", "full", "small", "kernels", "products", "losses")
        return [rng.choice(ways) for _ in range(rng.choice((1, 3, 6)))]

    def run(self, names, rng):
        fresh = rng.random() < 0.02  # drawn in any case: what follows is the same in a process that has a model
        if fresh or self.model is None:
            self.model = _core.Model(self.config, self.tensors)
        for name in names:
            try:
                getattr(self, name)(rng)
            except ALLOWED:
                pass
