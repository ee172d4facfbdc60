"""Slots without any MPI: how records are dealt, the order of sums, shards, processors, what a launcher announces."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

import jpo
from jpo import _core
from jpo.cli.main import main
from jpo.data.batches import forest_rows
from jpo.data.encoding import Encoded
from jpo.errors import JpoError
from jpo.parallel import exchange, launch, ranks
from jpo.parallel.dealing import deal, shares
from jpo.parallel.team import Team, default_slots
from jpo.train.config import PreferenceConfig


def encoded(prompt, response):
    from array import array

    return Encoded(array("i", prompt), array("i", response))


def random_pairs(count, seed=0):
    generator = np.random.default_rng(seed)
    prompts = [list(map(int, generator.integers(0, 99, generator.integers(5, 200)))) for _ in range(count // 2 + 1)]

    def response():
        return [int(x) for x in generator.integers(0, 99, generator.integers(5, 200))]

    return [
        tuple(encoded(prompts[int(generator.integers(len(prompts)))], response()) for _ in range(2))
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [1, 7, 32, 200])
def test_every_record_is_dealt_once_and_the_load_is_even(count):
    records = random_pairs(count)
    dealt = deal(records, 8)
    assert sorted(i for members in dealt for i in members) == list(range(count))
    loads = [forest_rows([records[i] for i in members]) for members in dealt]
    longest = max(forest_rows([record]) for record in records)
    assert max(loads) - min(loads) <= longest
    if count >= 32:
        assert np.mean(loads) / max(loads) > 0.9
        for size in (2, 4):
            per_rank = shares(records, 8, size)
            assert sum(per_rank) == sum(loads) and np.mean(per_rank) / max(per_rank) > 0.95


def test_ranks_are_even_where_each_slot_has_one_pair():
    """Longest first would give the first rank all the long ones."""
    records = [(encoded([i], list(range(10 * (i + 1)))),) for i in range(16)]
    for size in (2, 4):
        per_rank = shares(records, 16, size)
        assert np.mean(per_rank) / max(per_rank) > 0.95, per_rank


def test_records_of_one_prompt_meet():
    """Eight prompts, four pairs each: every slot gets one prompt, which it computes once."""
    generator = np.random.default_rng(1)
    prompts = [list(map(int, generator.integers(0, 99, 100))) for _ in range(8)]
    records = [tuple(encoded(prompts[i % 8], [i, j, 5]) for j in range(2)) for i in range(32)]
    dealt = deal(records, 8)
    assert all(len({i % 8 for i in members}) == 1 for members in dealt)


def test_thousands_of_records_are_dealt_to_hundreds_of_slots_quickly():
    import time

    records = random_pairs(2048)
    before = time.process_time()
    dealt = deal(records, 512)
    assert time.process_time() - before < 3  # 0.2 s on a quiet core; looking at every slot took 7
    assert sorted(i for members in dealt for i in members) == list(range(2048))


def serial(vectors):
    """The tree by its definition."""
    while len(vectors) > 1:
        vectors = [a + b for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_the_sum_is_that_of_the_tree_whoever_holds_the_slots(size):
    generator = np.random.default_rng(size)
    slots = [(generator.standard_normal(1000) * 10.0 ** generator.integers(-3, 4)).astype(np.float32) for _ in range(8)]
    nodes, vectors = [], []
    for rank in range(size):
        own = range(rank * 8 // size, (rank + 1) * 8 // size)
        tree, grads = exchange.TreeSum(own), np.zeros(1000, dtype=np.float32)
        for slot in own:
            grads += slots[slot]
            tree.add(slot, grads)
        nodes += tree.nodes
        vectors += [vector.copy() for vector in tree.vectors(grads)]
    np.testing.assert_array_equal(exchange._tree(nodes, vectors), serial(slots))
    assert not np.array_equal(serial(slots), np.add.reduce(slots))  # so the order shows


def test_an_interrupted_step_leaves_nothing_behind():
    tree, grads = exchange.TreeSum(range(4)), np.ones(3, dtype=np.float32)
    tree.add(0, grads)
    tree.begin()
    for slot in range(4):
        grads[:] = 1
        tree.add(slot, grads)
    np.testing.assert_array_equal(grads, [4, 4, 4])
    assert tree.vectors(grads)[0] is grads and len(tree.vectors(grads)) == 1


@pytest.mark.parametrize("size", [1, 65535, 65537, 10 * 65536 + 3])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shards_are_whole_blocks(size, count):
    found = exchange.shards(size, count)
    assert found[0][0] == 0 and found[-1][1] == size
    assert all(a[1] == b[0] for a, b in zip(found, found[1:], strict=False))
    assert all(first % exchange.BLOCK == 0 or first == size for first, _ in found)


def test_the_norm_of_shards_is_that_of_the_whole():
    grads = np.random.default_rng(0).standard_normal(5 * exchange.BLOCK + 77).astype(np.float32)
    total = 0.0
    for first, end in exchange.shards(grads.size, 3):
        for value in _core.grad_squares(grads[first:end]).tolist():
            total += value
    assert total**0.5 == _core.grad_norm(grads)


def test_slots_of_a_run():
    assert [default_slots(n) for n in (1, 2, 8, 9, 16, 100)] == [8, 8, 8, 16, 16, 128]
    with pytest.raises(JpoError, match="slots: expected a power of two, got 6"):
        PreferenceConfig(slots=6)
    many = ranks.Alone()
    many.size = 16  # type: ignore[misc]
    with pytest.raises(JpoError, match="16 ranks share at most as many slots of a step, and this run has 8"):
        Team(many, 8)


def test_gradients_in_slots_are_those_of_the_whole_step():
    """To rounding: the step is the same mathematics, cut otherwise."""

    def gradients(slots):
        lm = jpo.load("tiny")
        trainer = jpo.PreferenceTrainer(lm, "example", PreferenceConfig(r=2, batch_size=32, loss="sigmoid,aot"))
        trainer.team = Team(slots=slots)
        metrics, found = trainer.loss_and_gradients("example")
        return metrics, np.concatenate([value.ravel() for value in found.values()])

    (plain, one), (cut, eight) = gradients(1), gradients(8)
    assert plain["loss"] == pytest.approx(cut["loss"], rel=1e-6)
    assert np.linalg.norm(one - eight) < 1e-5 * np.linalg.norm(one) and not np.array_equal(one, eight)


def test_ranks_of_one_machine_share_its_processors():
    four = [[0, 1, 2, 3]] * 2
    assert [ranks.share(four[0], four, place) for place in range(2)] == [[0, 1], [2, 3]]
    assert [ranks.share([0, 1], [[0, 1]] * 3, place) for place in range(3)] == [[0], [1], [0]]
    bound = [[0, 1], [2, 3]]  # the launcher did it
    assert [ranks.share(bound[place], bound, place) for place in range(2)] == bound
    assert [ranks.share([0, 1, 2], [[0, 1, 2]] * 2, place) for place in range(2)] == [[0], [1, 2]]


NONE = {name: None for name in (*ranks._SIZES, ranks._SLURM, "PMIX_RANK", ranks.SWITCH)}


@pytest.mark.parametrize(
    ("told", "count"),
    [
        ({}, None),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1"}, 3),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),  # srun of one task, without MPI
        ({"SLURM_NTASKS": "8"}, None),  # a batch script: no step of it
        ({"PMI_SIZE": "4", "JPO_RANKS": "off"}, None),
    ],
)
def test_what_a_launcher_announces(told, count, monkeypatch):
    for name in NONE:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert ranks.announced() == count


@pytest.mark.parametrize("command", [["demo", "--output", "out"], ["study", "--preset", "demo", "--output", "out"]])
def test_a_command_of_one_process_is_refused_to_several(command, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PMI_SIZE", "2")
    assert main(command) == 1
    assert "is one process, and a launcher has started 2" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_a_launcher_of_another_mpi_is_named(monkeypatch):
    """srun without an MPI plugin starts three processes, each of which MPI sees alone."""
    pytest.importorskip("mpi4py")
    import subprocess
    import sys

    code = "from jpo.parallel.ranks import joined\ntry:\n joined()\nexcept ValueError as error:\n print(error)"
    clean = {k: v for k, v in __import__("os").environ.items() if not k.startswith(("PMI", "OMPI"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"SLURM_STEP_NUM_TASKS": "3"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "announces 3 ranks" in done.stdout and "sees 1" in done.stdout and "--mpi=pmi2" in done.stdout, done.stderr


def test_ranks_that_are_no_number_are_refused():
    for value in (0, -1, True):
        with pytest.raises(JpoError, match="--ranks: expected a positive whole number"):
            launch.enter(value)


def children():
    """Process ids of this process's children."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            if int(path.read_text().rsplit(")", 1)[1].split()[1]) == os.getpid():
                found.add(path.parent.name)
    return found


def test_a_dry_run_over_ranks_measures_them_side_by_side(tmp_path, capsys):
    """As many processes do the step at once; afterwards they are gone, and this one has its processors and threads."""
    before, others = (os.sched_getaffinity(0), jpo.get_num_threads()), children()
    told = ["train", "--model", "tiny", "--data", "example", "--batch-size", "8", "--r", "2", "--dry-run"]
    assert main([*told, "--ranks", "2"]) == 0
    said = capsys.readouterr().out
    assert "over 2 ranks" in said and said.count("tokens/s)") == 2, said
    assert (os.sched_getaffinity(0), jpo.get_num_threads()) == before
    assert children() <= others
    lm = jpo.load("tiny")
    trainer = jpo.PreferenceTrainer(lm, "example", PreferenceConfig(r=2, batch_size=8))
    for count in (1, 1024):
        over = trainer.dry_run(count)["over_ranks"]
        values = lm.trainable.params.size
        assert over["sent_mb_each"] == pytest.approx(8 * values * (count - 1) / count / 2**20, abs=0.01)
        assert (over["step_seconds_this_machine"] is None) == (count == 1024)
        assert 0 <= over["efficiency_as_many_machines"] <= 1  # of 1024 for so little: rounded to nothing
    assert not lm.trainable.grads.any()


def test_what_a_step_costs_over_machines():
    """Two ranks with three quarters and one quarter of the rows take the time of the first; traffic comes on top."""
    from jpo.parallel import cost

    network = cost.Network("slow", 1e6, 0.0)
    steps = [[(encoded([], range(30)),), (encoded([], range(10)),)]]
    found = cost.step_cost(steps, 2, 2, 4.0, 250_000, network)
    assert found.balance == pytest.approx(2 / 3) and found.compute == pytest.approx(3.0)
    assert found.exchange == pytest.approx(1.0) and found.efficiency(4.0) == pytest.approx(0.5)
