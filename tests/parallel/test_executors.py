"""Stages over executors and by shards: byte for byte what one process writes, a lost worker's shard repeated."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jpo.cli.main import main
from jpo.cli.sharding import without_own
from jpo.disk import aside
from jpo.errors import JpoError
from jpo.feedback.journal import Journal
from jpo.parallel import executors
from jpo.parallel.shards import Part, Shard, counts, join

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def environment(**more):
    paths = [str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"JPO_PIN": "0", "JPO_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)} | more


def jpo(*arguments, before=(), **more):
    done = subprocess.run(
        [*before, sys.executable, "-m", "jpo", *map(str, arguments)],
        cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=480,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- shards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "count"), [(0, 3), (2, 3), (10, 3), (12, 4)])
def test_shards_follow_each_other(total, count):
    ranges = [Shard(index, count).range(total) for index in range(count)]
    assert [i for first, end in ranges for i in range(first, end)] == list(range(total))
    lengths = [end - first for first, end in ranges]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "a/b", "1/0", "1/4/2", ""])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(JpoError, match="--shard: expected i/n with i from 0 to n - 1"):
        Shard.parse(text)


def test_the_part_of_a_source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"n": i}) + "\n" for i in range(7)))
    parts = [Part(str(path), Shard(i, 3)) for i in range(3)]
    assert [[r["n"] for r in part] for part in parts] == [[0, 1], [2, 3], [4, 5, 6]]
    assert list(map(len, parts)) == [2, 2, 3] and parts[2].__iter__().__next__().where.endswith("line 5")


def test_a_shard_is_written_aside_and_by_one_at_a_time(tmp_path):
    path = str(tmp_path / "x.jsonl")
    with aside(path) as part:
        assert part != path and not os.path.exists(path)
        with pytest.raises(JpoError, match="another process writes this file"), aside(path):
            pass
    assert os.path.exists(path) and not os.path.exists(part)
    with aside(path) as again:  # a finished one keeps its name
        assert again == path


def test_join_names_what_is_missing_and_keeps_the_order(tmp_path):
    output = str(tmp_path / "out.jsonl")
    with pytest.raises(JpoError, match="there are none"):
        join(output)
    for index in (0, 2):
        Path(Shard(index, 3).path(output)).write_text(f"{index}\n")
    with pytest.raises(
        JpoError, match="1 of 3 shards are missing, the first is .*out-00001-of-00003.jsonl.* --shard 1/3"
    ):
        join(output)
    assert not os.path.exists(output) and counts(output) == [3]
    Path(Shard(1, 3).path(output)).write_text("1\n")
    Path(Shard(1, 2).path(output)).write_text("other\n")
    with pytest.raises(JpoError, match="those of 2 and of 3"):
        join(output)
    assert join(output, 3) == 3
    assert Path(output).read_text() == "0\n1\n2\n" and counts(output) == [2]


def test_what_a_shard_repeats():
    given = [
        "generate",
        "--executor",
        "processes:2",
        "--model",
        "tiny",
        "--shards=4",
        "--executor=mpi",
        "--shards",
        "3",
    ]
    assert without_own(given) == ["generate", "--model", "tiny"]


@pytest.mark.parametrize("spec", ["threads:2", "processes:0", "processes:x", "mpi:2", "dask", "ray", ""])
def test_what_is_no_executor_is_refused(spec):
    with pytest.raises(JpoError, match="--executor"), executors.opened(spec):
        pass


# ---- generate -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps({"id": i, "instruction": f"Say {i}"}) + "\n" for i in range(70)))
    command = ["generate", "--model", "tiny", "--input", path, "--temperature", "1.0", "--seed", "1", "--seed", "2"]
    command += ["--max-new-tokens", "3", "--compute", "float32"]
    whole = folder / "whole.jsonl"
    jpo(*command, "--output", whole)
    return command, whole.read_bytes()


def test_generate_over_processes_and_as_an_array(instructions, tmp_path):
    """70 instructions are three blocks of at most 32 for each of two seeds."""
    command, whole = instructions
    out = tmp_path / "processes.jsonl"
    assert "140 samples in" in jpo(*command, "--output", out, "--executor", "processes:2", "--shards", "4")
    assert out.read_bytes() == whole and sorted(os.listdir(tmp_path)) == ["processes.jsonl"]
    for index in (1, 0):
        told = jpo(*command, "--output", tmp_path / "array.jsonl", "--shard", f"{index}/2")
        assert f"samples in shard {index}/2 of the whole; jpo join puts the shards together\n" in told
    assert "2 shards joined" in jpo("join", "--output", tmp_path / "array.jsonl")
    assert (tmp_path / "array.jsonl").read_bytes() == whole


def test_a_shard_that_fails_speaks_for_itself(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"instruction": "a"}\n{"instruction": \n')
    done = subprocess.run(
        [sys.executable, "-m", "jpo", "generate", "--model", "tiny", "--input", str(path), "--output",
         str(tmp_path / "out.jsonl"), "--executor", "processes:2"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "line 2" in done.stderr and len(done.stderr.splitlines()) == 1


# ---- feedback, with a worker that is killed -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("feedback")
    path = folder / "candidates.jsonl"
    rows = [{"instruction": f"ask {i}", "response_0": f"one {i}", "response_1": f"two {i}"} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["feedback", "--input", path, "--judge", "judge_that_dies:judge"]
    jpo(*command, "--output", folder / "whole.jsonl")
    return command, (folder / "whole.jsonl").read_bytes()


def entries(path):
    journal = Journal(path, create=False)
    try:
        return list(journal.entries())
    finally:
        journal.close()


def over(candidates, tmp_path, executor, victim, before=(), **more):
    """Feedback over an executor of which one worker dies once; the same bytes, and the journals in one."""
    command, whole = candidates
    out, marker = tmp_path / "out.jsonl", tmp_path / "died"
    told = {"JPO_TEST_MARKER": str(marker), "JPO_TEST_VICTIM": victim} | more
    said = jpo(*command, "--output", out, "--executor", executor, "--shards", "3", before=before, **told)
    assert marker.exists(), "nothing was killed"
    assert out.read_bytes() == whole
    assert "0 questions asked now" in said  # all was asked by the shards
    assert len(entries(f"{out}.journal.sqlite")) == 48
    assert not [name for name in os.listdir(tmp_path) if "-of-" in name]
    return command, out


def test_processes_repeat_a_killed_shard(candidates, tmp_path):
    command, out = over(candidates, tmp_path, "processes:2", "self")
    said = jpo(
        *command, "--output", out, "--executor", "processes:2", "--shards", "2"
    )  # what the journal knows is not asked
    assert "0 questions asked now" in said


def test_mpi_ranks_repeat_a_killed_shard(candidates, tmp_path):
    pytest.importorskip("mpi4py")
    from jpo.parallel.launch import _mpiexec

    over(candidates, tmp_path, "mpi", "self", before=(_mpiexec(), "-n", "3"))


def test_dask_repeats_what_a_killed_worker_had(candidates, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    for name, value in environment(JPO_TEST_MARKER=str(tmp_path / "died"), JPO_TEST_VICTIM="parent").items():
        monkeypatch.setenv(name, value)  # its workers inherit it
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        over(candidates, tmp_path, f"dask:{cluster.scheduler_address}", "parent")


def test_ray_repeats_what_a_killed_worker_had(candidates, tmp_path):
    pytest.importorskip("ray")
    over(candidates, tmp_path, "ray:local", "parent", RAY_USAGE_STATS_ENABLED="0")


def test_evaluate_over_processes(instructions, tmp_path):
    """The table, the figures and the judged outputs are those of one process."""
    command, whole = instructions
    (tmp_path / "g.jsonl").write_bytes(whole)
    gold = tmp_path / "gold.jsonl"
    gold.write_text(
        "".join(json.dumps({"id": i, "instruction": f"Say {i}", "gold_response": f"{i}."}) + "\n" for i in range(70))
    )
    evaluate = ["evaluate", "--generations", tmp_path / "g.jsonl", "--gold", gold, "--judge", "judge_that_dies:judge"]
    one = jpo(*evaluate, "--output", tmp_path / "one.jsonl", "--json", tmp_path / "one.json")
    two = jpo(
        *evaluate, "--output", tmp_path / "two.jsonl", "--json", tmp_path / "two.json", "--executor", "processes:2"
    )
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    assert one.splitlines()[1:] == two.splitlines()[1:]


# ---- score ----------------------------------------------------------------------------------------------------------


def test_score_over_processes_and_as_an_array(tmp_path, capsys, monkeypatch):
    """40 pairs are two blocks, the second shorter; the file is that of one process, and the figures are."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"ask {i}", "chosen": f"{i}", "rejected": "No."} for i in range(40)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["score", str(pairs), "--model", "tiny", "--compute", "float32", "--output"]

    def told(name, *more):
        assert main([*command, str(tmp_path / name), *more]) == 0
        return capsys.readouterr().out.splitlines()

    one = told("one.jsonl")
    dealt = told("two.jsonl", "--executor", "processes:2", "--shards", "2")
    assert dealt[:-1] == one[-len(dealt) : -1] and len(dealt) > 4
    for index in (2, 1, 0):
        *_, last = told("three.jsonl", "--shard", f"{index}/3")
        assert ("it is empty: there are fewer blocks of records than 3 shards" in last) == (index == 0)
    assert main(["join", "--output", str(tmp_path / "three.jsonl")]) == 0
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "three.jsonl").read_bytes()


def test_several_of_a_command_that_deals_nothing_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "2")
    given = ["generate", "--model", "tiny", "--prompt", "x", "--output", str(tmp_path / "out.jsonl")]
    assert main(given) == 1 and "jpo generate is one process" in capsys.readouterr().err
    assert main([*given, "--shard", "0/1", "--max-new-tokens", "1"]) == 0  # srun -n 16 jpo ... --shard $SLURM_PROCID/16


def test_reference_over_processes(tmp_path, capsys, monkeypatch):
    """jpo train finds in the joined file all that it needs; its file is that of one process."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    given = ["--model", "tiny", "--data", "example", "--compute", "float32", "--token-budget", "400", "--r", "2"]
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert main(["reference", *given, "--ref-logps", str(one)]) == 0
    over = ["--executor", "processes:2", "--shards", "2"]
    assert main(["reference", *given, "--ref-logps", str(two), *over]) == 0
    assert "64 log-likelihoods in" in capsys.readouterr().out
    assert one.read_bytes() == two.read_bytes() and sorted(os.listdir(tmp_path)) == [one.name, two.name]
    assert main(["reference", *given, "--ref-logps", str(two)]) == 0
    assert "log-likelihoods of 0 pairs computed now" in capsys.readouterr().out
    assert main(["reference", *given]) == 1 and "--ref-logps is missing" in capsys.readouterr().err
    assert main(["reference", *given, "--ref-logps", str(one), "--loss", "simpo"]) == 1
    assert "loss simpo has no reference" in capsys.readouterr().err
