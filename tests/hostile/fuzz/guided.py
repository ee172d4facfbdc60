"""Coverage-guided fuzzing of one target: `python -m tests.hostile.fuzz TARGET --coverage --seconds S`.

Atheris (libFuzzer over Python's own branches) chooses which inputs to keep: our parsers are Python, of which a fuzzer
of the C core alone would see nothing. An input is the file that a target spoils most often, the others stay as in its
first case; it begins with the committed corpus and the target's own mutated cases. A failure ends the run and is
written to --keep, as libFuzzer does.
"""

import sys

STARTERS = 64


def run(name, seconds, runs, seed, keep, scratch):
    """Ends the process: libFuzzer's exit status, 77 after a failure."""
    try:
        import atheris
    except ImportError:
        sys.exit("--coverage needs the package atheris: pip install atheris")
    with atheris.instrument_imports(include=["jpo"]):
        from . import targets
    target, folder, starters = targets.named(name), scratch / "case", targets.emptied(scratch / "corpus")
    cases = [target.make(targets.generator(seed, index)) for index in range(STARTERS)]
    main = max(cases[0], key=lambda file: len({case[file] for case in cases if file in case}))
    data = [data for file, data in target.kept if file == main] + [case[main] for case in cases if main in case]
    for index, piece in enumerate(data):
        (starters / str(index)).write_bytes(piece)

    def one(data):
        case = {**cases[0], main: data}
        target.write(case, targets.emptied(folder))
        try:
            target.run(folder, case, targets.generator(seed, 0))
        except target.allowed:
            pass

    keep.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={int(seconds)}",
        f"-runs={runs}",
        f"-seed={seed + 1}",
        f"-artifact_prefix={keep}/{name}-",
    ]
    options += ["-rss_limit_mb=4096", "-timeout=60", "-max_len=1000000", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(starters)], one)
    atheris.Fuzz()
