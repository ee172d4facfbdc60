"""The committed corpus: for each target a few kB of small files of ours that reach different lines of jpo.

corpus/TARGET/FILE/DIGEST holds what stands in FILE while the target's other files are sound; .gz where it is longer
than READABLE.
`python -m tests.hostile.fuzz TARGET --grow --cases N --seed S` adds what reaches new lines, the smallest first.
"""

import gzip
import hashlib
import os
import sys
from collections import Counter
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"
LIMIT, READABLE = 6 << 10, 1 << 10  # bytes of a target's corpus; of a file that is stored as it is
STARTERS = 32
OURS = f"{os.sep}jpo{os.sep}"


def kept(name):
    """[(file, its bytes)] of a target, in a fixed order."""
    paths = sorted(path for path in (FOLDER / name).glob("*/*") if path.is_file())
    return [(p.parent.name, gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes()) for p in paths]


def sound(target, generator):
    """{file: bytes} of a case in which nothing is spoilt: what most of the target's first cases have."""
    cases = [target.make(generator(0, index)) for index in range(STARTERS)]
    names = Counter(name for case in cases for name in case)
    return {
        name: Counter(case[name] for case in cases if name in case).most_common(1)[0][0]
        for name, count in names.items()
        if count > STARTERS // 2 or len(names) == 1
    }


class Lines:
    """Inside the block, the lines of jpo that this thread runs."""

    def __init__(self):
        self.met = set()

    def _call(self, frame, event, _):
        return self._line if OURS in frame.f_code.co_filename else None

    def _line(self, frame, event, _):
        if event == "line":
            self.met.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    def __enter__(self):
        sys.settrace(self._call)
        return self

    def __exit__(self, *_):
        sys.settrace(None)


def reached(target, case, folder, rng):
    """The lines of jpo that a case meets; None where it fails by no answer."""
    from . import targets

    target.write(case, targets.emptied(folder))
    with Lines() as lines:
        try:
            target.run(folder, case, rng)
        except target.allowed:
            pass
        except Exception:  # a finding: the fuzz target's own run reports it
            return None
    return lines.met


def packed(data):
    """(suffix, bytes) as the file is stored."""
    return ("", data) if len(data) <= READABLE else (".gz", gzip.compress(data, 9, mtime=0))


def grow(name, target, cases, seed, folder):
    """Adds to corpus/`name` until LIMIT; the number of files that were added."""
    from . import targets

    base, known = sound(target, targets.generator), set()
    for file, data in kept(name):
        known |= reached(target, {**base, file: data}, folder, targets.generator(0, 0)) or set()
    found = []
    for index in range(cases):
        case = target.make(targets.generator(seed, index))
        changed = [file for file in case if case[file] != base.get(file)]
        if len(changed) == 1:
            lines = reached(target, {**base, **case}, folder, targets.generator(0, 0))
            if lines and not lines <= known:
                found.append((*packed(case[changed[0]]), changed[0], case[changed[0]], lines))
    room = LIMIT - sum(path.stat().st_size for path in (FOLDER / name).glob("*/*"))
    added = 0
    for suffix, stored, file, data, lines in sorted(found, key=lambda entry: len(entry[1])):
        if lines <= known or len(stored) > room:
            continue
        place = FOLDER / name / file
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{hashlib.sha256(data).hexdigest()[:12]}{suffix}").write_bytes(stored)
        known |= lines
        room -= len(stored)
        added += 1
    return added
