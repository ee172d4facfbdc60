"""Structured mutation: of bytes, of JSON values, of JSON inside safetensors files. Knows no target."""

import copy
import itertools
import json
import struct

NUMBERS = (0, 1, -1, 2, 7, 255, 256, 65535, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
VALUES = (
    None, True, False, "", "x", "\u2581", "\x00", "\ud800", "\x1b]0;t\x07", "a" * 3000, [], {}, [[]], [None], {"": None},
    0, -1, 1, 3, 1 << 31, 1 << 32, 1 << 63, 1 << 64, -(1 << 63), 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, 1e-5,
    float("inf"), float("-inf"), float("nan"),
)  # fmt: skip


def of_bytes(rng, data, header=0):
    """`data` with one to four faults; half of them fall into its first `header` bytes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not data:
            return b""
        end = len(data) if not header or rng.random() < 0.5 else min(header, len(data))
        at = rng.randrange(end)
        kind = rng.randrange(8)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            form = rng.choice(("<I", "<Q", "<H", ">I"))
            size = struct.calcsize(form)
            data[at : at + size] = struct.pack(form, rng.choice(NUMBERS) & ((1 << 8 * size) - 1))
        elif kind == 3:
            del data[at : at + rng.choice((1, 4, 8, 64, len(data)))]
        elif kind == 4:
            data[at:at] = data[rng.randrange(len(data)) :][: rng.choice((1, 4, 8, 64))]
        elif kind == 5:
            size, other = rng.choice((1, 4, 8, 32)), rng.randrange(len(data))
            data[at : at + size] = data[other : other + size]
        elif kind == 6:
            del data[at:]
        else:
            data[at:at] = rng.randbytes(rng.choice((1, 3, 8)))
    return bytes(data)


def _places(value):
    """The path of each part of a JSON value, the outer before the inner; of a long list or object the first 400."""
    places = []

    def visit(part, path):
        entries = part.items() if isinstance(part, dict) else enumerate(part)
        for key, inner in itertools.islice(entries, 400):
            places.append((*path, key))
            if isinstance(inner, (dict, list)):
                visit(inner, places[-1])

    if isinstance(value, (dict, list)):
        visit(value, ())
    return places


def of_value(rng, value):
    """A copy of a JSON value with one to three of its parts removed, replaced, copied elsewhere, renamed or wrapped."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = _places(value)
        if not places:
            return copy.deepcopy(rng.choice(VALUES))
        *way, last = rng.choice(places)
        holder = value
        for key in way:
            holder = holder[key]
        kind = rng.randrange(7)
        if kind == 0:
            del holder[last]
        elif kind == 1 and isinstance(holder[last], (int, float)):
            holder[last] = rng.choice((-holder[last], holder[last] + 1, holder[last] * 2, rng.choice(NUMBERS)))
        elif kind == 2 and isinstance(holder[last], str):
            holder[last] = rng.choice(
                (holder[last] * 2, holder[last][1:], holder[last].upper(), holder[last] + "\u0130")
            )
        elif kind == 3:
            holder[last] = rng.choice(([holder[last]], {"x": holder[last]}, [holder[last]] * 3, str(holder[last])))
        elif kind == 4:
            *other, end = rng.choice(places)
            source = value
            try:
                for key in other:
                    source = source[key]
                holder[last] = json.loads(json.dumps(source[end]))
            except (KeyError, IndexError, TypeError, RecursionError):
                holder[last] = None
        elif kind == 5 and isinstance(holder, dict):
            holder[rng.choice((last + "x", "", "type", last.upper()))] = holder.pop(last)
        else:
            holder[last] = copy.deepcopy(rng.choice(VALUES))
    return value


def dumped(value):
    """The value as JSON, with what JSON has no form for (NaN, lone surrogates, integers of any size)."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


def of_json(rng, value):
    """JSON text, sometimes broken as text, mostly as a value."""
    if rng.random() < 0.15:
        return of_bytes(rng, dumped(value))
    if rng.random() < 0.02:
        return b'{"a":' * 100_000
    return dumped(of_value(rng, value))


def of_safetensors(rng, data):
    """A safetensors file whose header is mutated as JSON, its stated length mostly right."""
    if rng.random() < 0.3:
        return of_bytes(rng, data, 200)
    (length,) = struct.unpack_from("<Q", data)
    header = of_json(rng, json.loads(data[8 : 8 + length]))
    header += b" " * (-len(header) % 8)
    stated = len(header) if rng.random() < 0.9 else rng.choice(NUMBERS) & ((1 << 64) - 1)
    return struct.pack("<Q", stated) + header + data[8 + length :]
