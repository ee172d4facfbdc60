"""python -m tests.benchmarks: jpo and each installed peer side by side, every contestant in a process of its own.

Prints, for each case, figure, ratio, peak memory and share of the limit that the arithmetic allows, then the goals; an
interrupted run goes on where it was. Peers: pip install '.[parity]' liger-kernel llama-cpp-python; Debian's
libtcmalloc-minimal4 gives them their better allocator.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from . import cache, contestants, figures, machine, table
from .cases import CASES, Case
from .runner import ROOT, Settings, run_case
from .work import Context

HELPFUL = ROOT.parent / "shared" / "data" / "anthropic_helpful" / "val_conditional_pref.jsonl"
TLDR = ROOT.parent / "shared" / "data" / "tldr" / "test.jsonl"


def arguments() -> argparse.Namespace:
    """The command line."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jpo-benchmarks"
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="CASE", help="these cases alone (see --list)")
    parser.add_argument("--skip", nargs="+", metavar="CASE", default=[], help="all but these cases")
    parser.add_argument("--list", action="store_true", help="list cases and contestants, then stop")
    parser.add_argument("--peers", nargs="*", metavar="TEXT", help="only peers whose label holds one of the texts")
    parser.add_argument("--no-peers", action="store_true", help="jpo alone")
    parser.add_argument("--quick", action="store_true", help="3 turns, 8 s a contestant; without the 7B model")
    parser.add_argument("--rounds", type=int, help="turns of each contestant; the median counts (default 5)")
    parser.add_argument("--seconds", type=float, help="time for a contestant's turns, at least one (default 30)")
    parser.add_argument("--threads", type=int, help="threads of every contestant (default: each library's own choice)")
    parser.add_argument("--growth", action="store_true", help="growth curves too")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default=str(HELPFUL) if HELPFUL.exists() else "example", help="preference records")
    parser.add_argument("--tldr", default=str(TLDR) if TLDR.exists() else None, help="records with long instructions")
    parser.add_argument("--json", metavar="FILE", help="write everything measured")
    parser.add_argument("--plot", metavar="FILE", help="write a plot (matplotlib)")
    parser.add_argument("--folder", type=Path, default=home, help="models, samples, logs (default %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="do not go on from an interrupted run")
    return parser.parse_args()


def chosen_entries(case: str, options: argparse.Namespace) -> list[contestants.Entry]:
    """Who runs in the case."""
    found = contestants.entries(case)
    if options.no_peers:
        found = [entry for entry in found if entry.ours]
    elif options.peers is not None:
        found = [entry for entry in found if entry.ours or any(text in entry.label for text in options.peers)]
    return found


def measure(case: Case, options: argparse.Namespace, context: Context, settings: Settings) -> dict[str, Any]:
    """One case, from its work to its goals."""
    work = case.build(context)
    entries = chosen_entries(case.name, options)
    outcomes = [dataclasses.asdict(outcome) for outcome in run_case(case.name, work, entries, case.yardstick, settings)]
    rate = figures.yardstick_rate(outcomes[0])
    rows = figures.rows(case, work, outcomes)
    kept = {key: value for key, value in work.items() if key in ("units", "rows", "flops", "bytes")}
    return {
        "name": case.name,
        "title": case.title,
        "unit": case.unit,
        "yardstick": outcomes[0]["label"],
        "yardstick_rate": rate,
        "yardstick_text": case.yardstick_text(rate, outcomes[0]),
        "rows": rows,
        "goals": figures.judge(case, work, rows, outcomes),
        "work": kept,
        "outcomes": outcomes,
    }


def show_list() -> None:
    """Cases and who enters them."""
    for case in CASES:
        print(f"{case.name}: {case.title}")
        for entry in contestants.entries(case.name):
            absent = entry.contestant.missing()
            print(f"    {entry.label}" + (f"  (not installed: {', '.join(absent)})" if absent else ""))


def selected(options: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for."""
    names = [case.name for case in CASES]
    if unknown := [name for name in [*(options.only or []), *options.skip] if name not in names]:
        raise SystemExit(f"unknown case {', '.join(unknown)}; there are: {', '.join(names)}")
    if options.only:
        return [case for case in CASES if case.name in options.only]
    wanted = [case for case in CASES if case.group != "growth" or options.growth]
    return [case for case in wanted if case.name not in options.skip and not (options.quick and case.group == "slow")]


def main() -> None:
    """Run, print, write."""
    options = arguments()
    if options.threads:
        os.environ[machine.THREADS] = str(options.threads)
    contestants.load_all()
    if options.list:
        return show_list()
    rounds = options.rounds or (3 if options.quick else 5)
    seconds = options.seconds or (8.0 if options.quick else 30.0)
    options.folder.mkdir(parents=True, exist_ok=True)
    logs = options.folder / "logs"
    logs.mkdir(exist_ok=True)
    settings = Settings(rounds, seconds, options.quick, logs, lambda text: print(text, flush=True))
    context = Context(options.folder, rounds, options.model, options.data, options.tldr)
    mark = {
        "threads": options.threads,
        "rounds": rounds,
        "seconds": seconds,
        "model": options.model,
        "data": options.data,
        "tldr": options.tldr,
    }
    store = cache.Cache(options.folder, cache.fingerprint(mark | {"peers": options.peers, "no": options.no_peers}))
    known = machine.describe()
    needs = {name for one in contestants.REGISTRY.values() for name in one.needs}
    versions = machine.versions(needs)
    print("\n".join(table.machine_lines(known, versions)), flush=True)
    results, start = [], time.perf_counter()
    with context:
        for case in selected(options):
            result = None if options.fresh else store.get(case.name)
            if result:
                print(f"\n{case.name}: taken over from the interrupted run (--fresh measures anew)")
            else:
                print(f"\n{case.name} ...", flush=True)
                result = measure(case, options, context, settings)
                store.put(case.name, result)
            print("\n".join(table.case_lines(result)), flush=True)
            results.append(result)
    print("\n## Goals\n")
    print("\n".join(table.goal_lines(results)))
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes")
    report = {"machine": known, "versions": versions, "cases": results}
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1), encoding="utf-8")
    if options.plot:
        from . import plot

        plot.draw(report, options.plot)
    store.drop()


if __name__ == "__main__":
    main()
