"""The fuzz targets: how a case is made from a random generator, how it is run, and which exceptions are answers."""

import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[2]
sys.path.insert(0, str(TESTS))

import model_files as files  # noqa: E402

import jpo  # noqa: E402
from jpo.data import readers, records  # noqa: E402
from jpo.errors import JpoError  # noqa: E402
from jpo.feedback.entries import Entry  # noqa: E402
from jpo.feedback.journal import Journal  # noqa: E402
from jpo.formats import load_checkpoint  # noqa: E402
from jpo.formats.chat import render  # noqa: E402
from jpo.formats.huggingface import load_tokenizer  # noqa: E402
from jpo.formats.peft import read_adapter  # noqa: E402
from jpo.train import checkpoint  # noqa: E402

from . import corpus, mutate  # noqa: E402
from .core import Calls  # noqa: E402
from .replies import Server  # noqa: E402

TEXTS = ("Name a colour: blue, 12 of them.\n", " \u00e9\u4e16\U0001f600 don't\t", "a" * 200, "")


def seeds():
    """A new folder for what a target's cases begin with."""
    return Path(tempfile.mkdtemp(dir=os.environ["JPO_FUZZ_SEEDS"]))


class Target:
    """Cases are bytes or {file name: bytes}; `write` puts one into a folder, `run` reads it there."""

    allowed: tuple[type[BaseException], ...] = (JpoError,)
    kept: tuple[tuple[str, bytes], ...] = ()  # the target's corpus
    sound: dict[str, bytes] = {}  # what its files stand among

    def write(self, case, folder):
        for name, data in case.items():
            (folder / name).write_bytes(data)

    def case(self, rng, index):
        """The committed files first, as they are; then made ones, and among them committed ones with further faults."""
        if index < len(self.kept):
            file, data = self.kept[index]
            return {**self.sound, file: data}
        if self.kept and rng.random() < 0.125:
            file, data = rng.choice(self.kept)
            return {**self.sound, file: mutate.of_bytes(rng, data)}
        return self.make(rng)

    def size(self, case):
        return sum(map(len, case.values())) if isinstance(case, dict) else 0


def scored(checkpoint):
    """What follows a load: the model is small here, so a pass over it must be finite or refused."""
    if checkpoint.config["max_position_embeddings"] > 1 << 20:
        return
    lm = jpo.LanguageModel(checkpoint)
    lm.sequence_logps(["a"], [" b"])
    lm.generate(["a"], max_new_tokens=2)


class Gguf(Target):
    def __init__(self):
        weights = files.llama_weights()
        self.parts = [files.gguf_tensors(weights, kind)[0] for kind in ("F32", "F16", "Q8_0", "Q4_0")]
        self.metadata = files.llama_metadata()
        # entries that a case leaves as they are, as bytes: to make those of the vocabulary anew costs as much as a case
        self.sound_bytes = {id(entry): files.text(entry[0]) + files.typed(*entry[1:]) for entry in self.metadata}
        self.whole = [files.gguf_bytes(self.metadata, part) for part in self.parts]

    def make(self, rng):
        if rng.random() < 0.5:
            data = rng.choice(self.whole)
            return {"m.gguf": mutate.of_bytes(rng, data, 12_000)}
        metadata, tensors = list(self.metadata), [list(part) for part in rng.choice(self.parts)]
        for _ in range(rng.choice((1, 1, 2, 3))):
            if rng.random() < 0.5 and metadata:
                at = rng.randrange(len(metadata))
                self._spoil_metadata(rng, metadata, at)
            else:
                self._spoil_tensor(rng, tensors[rng.randrange(len(tensors))])
        metadata = [self.sound_bytes.get(id(entry), entry) for entry in metadata]
        options = rng.choice(({}, {}, {"alignment": rng.choice((1, 8, 64))}, {"version": rng.choice((1, 2, 4))}))
        return {"m.gguf": files.gguf_bytes(metadata, [tuple(part) for part in tensors], **options)}

    @staticmethod
    def _spoil_metadata(rng, metadata, at):
        entry = metadata[at]
        kind = rng.randrange(4)
        if kind == 0 or not isinstance(entry, tuple):
            del metadata[at]
        elif kind == 1:
            metadata.append(entry)
        elif kind == 2 and isinstance(entry[2], int):
            bits = {files.U32: 32, files.I32: 31, files.U64: 64, files.U8: 8}.get(entry[1], 31)
            metadata[at] = (entry[0], entry[1], rng.choice(mutate.NUMBERS) & ((1 << bits) - 1))
        else:
            metadata[at] = (entry[0], *rng.choice(metadata)[1:]) if isinstance(rng.choice(metadata), tuple) else entry

    @staticmethod
    def _spoil_tensor(rng, tensor):
        kind = rng.randrange(4)
        if kind == 0:
            tensor[0] = rng.choice((tensor[0] + "x", "", "token_embd.weight", "\u0130" * 40))
        elif kind == 1:
            tensor[1] = tuple(
                rng.choice((*tensor[1], 0, 1, 1 << 31, 1 << 62)) for _ in range(rng.choice((1, 2, 3, 4, 5)))
            )
        elif kind == 2:
            tensor[2] = rng.choice((0, 1, 2, 3, 8, 12, 14, 30, 99, 1 << 31))
        else:
            tensor[3] = mutate.of_bytes(rng, tensor[3]) if tensor[3] else b"\0"

    def run(self, folder, case, rng):
        scored(load_checkpoint(str(folder / "m.gguf")))


class Directory(Target):
    """A Hugging Face directory with one or two of its files spoilt."""

    def __init__(self, spoilt=("config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json")):
        folder = seeds() / "directory"
        files.write_directory(folder)
        files.write_directory(folder / "sharded", shards=2)
        self.sets = [
            {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
            for place in (folder, folder / "sharded")
        ]
        self.places = {
            id(data): place / name
            for place, base in zip((folder, folder / "sharded"), self.sets, strict=True)
            for name, data in base.items()
        }
        self.spoilt = spoilt

    def write(self, case, folder):
        """A file that nothing spoilt is a link: most are, and nothing here writes into one."""
        for name, data in case.items():
            if id(data) in self.places:
                os.link(self.places[id(data)], folder / name)
            else:
                (folder / name).write_bytes(data)

    def make(self, rng):
        case = dict(rng.choice(self.sets))
        chosen = [
            name for name in case if name in self.spoilt or ("sharded" not in self.spoilt and name.startswith("model"))
        ]
        for name in rng.sample(chosen, rng.choice((1, 1, 2))):
            data = case[name]
            case[name] = (
                mutate.of_safetensors(rng, data)
                if name.endswith(".safetensors")
                else mutate.of_json(rng, json.loads(data))
            )
        if rng.random() < 0.03:
            del case[rng.choice(list(case))]
        return case

    def run(self, folder, case, rng):
        scored(load_checkpoint(str(folder)))


class Tokenizers(Target):
    def __init__(self):
        base = files.tokenizer_json()
        steps = {
            "normalizer": [
                {"type": "NFKC"}, {"type": "Prepend", "prepend": "\u2581"}, {"type": "Lowercase"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ],
            "pre_tokenizer": [
                {"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}{1,3}|\s+"}, "behavior": "Isolated", "invert": False},
                {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            ],
        }  # fmt: skip
        self.bases = [base]
        for key, parts in steps.items():
            inner = "normalizers" if key == "normalizer" else "pretokenizers"
            self.bases += [{**base, key: part} for part in parts]
            self.bases.append({**base, key: {"type": "Sequence", inner: parts}})
        self.hostile = (
            {"normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 12}},
            {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 100_000}},
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a*)*$"}, "content": "b"}},
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|aa)+$|(x+x+)+y"}, "behavior": "Isolated", "invert": False}},
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "((a{90}){90}){90}"}, "behavior": "Isolated", "invert": False}},
        )  # fmt: skip

    def make(self, rng):
        base = rng.choice(self.bases)
        if rng.random() < 0.02:
            return {"tokenizer.json": mutate.dumped({**base, **rng.choice(self.hostile)})}
        part = rng.choice((None, "normalizer", "pre_tokenizer", "decoder", "added_tokens", "model"))
        if part is None or base.get(part) is None:
            return {"tokenizer.json": mutate.of_json(rng, base)}
        return {"tokenizer.json": mutate.dumped({**base, part: mutate.of_value(rng, base[part])})}

    def run(self, folder, case, rng):
        tokenizer = load_tokenizer(str(folder))
        for text in TEXTS:
            tokenizer.decode(tokenizer.encode(text))
        tokenizer.response_ids("a b", " c")
        tokenizer.decode([0, 1, 300])


class Adapters(Target):
    def __init__(self):
        folder = seeds() / "adapter"
        files.write_adapter_files(folder)
        self.base = {path.name: path.read_bytes() for path in folder.iterdir()}

    def make(self, rng):
        case = dict(self.base)
        for name in rng.sample(list(case), rng.choice((1, 1, 2))):
            data = case[name]
            case[name] = (
                mutate.of_safetensors(rng, data)
                if name.endswith(".safetensors")
                else mutate.of_json(rng, json.loads(data))
            )
        return case

    def run(self, folder, case, rng):
        read_adapter(str(folder))


class Templates(Target):
    """Programs put together from pieces of the language, from mild to endless."""

    PIECES = (
        "{{ bos_token }}", "{% for m in messages %}", "{% endfor %}", "{{ m['content'] }}", "{{ messages[0].content }}",
        "{% if add_generation_prompt %}", "{% endif %}", "{% set x = 'a' %}", "{% set x = x * 9999 %}", "{{ x }}",
        "{% set ns = namespace(n=0) %}", "{% set ns.n = ns.n + 1 %}", "{{ x|length }}", "{{ x|tojson(indent=4) }}",
        "{% macro f(a) %}", "{% endmacro %}", "{{ f(1) }}", "{{ messages.__class__ }}", "{{ ''.__class__.mro() }}",
        "{{ raise_exception('no') }}", "{{ strftime_now('%Y') }}", "{% break %}", "{{ range(10**9)|list }}", "{{ 10**10**6 }}",
        "{{ m | map('upper') | list }}", "{{ '%s' % m }}", "{{ x.format(x) }}", "{% generation %}", "{% endgeneration %}",
        "{{ loop.index }}", "{{ lipsum() }}", "{{ cycler }}", "{% include 'x' %}", "{% import 'os' as o %}", "{#", "#}",
    )  # fmt: skip

    def make(self, rng):
        text = "".join(rng.choice((*self.PIECES, "x\n")) for _ in range(rng.choice((1, 3, 8, 20))))
        if rng.random() < 0.3:
            text = mutate.of_bytes(rng, text.encode()).decode("utf-8", "replace")
        return {"template": text.encode("utf-8", "surrogatepass")}

    def run(self, folder, case, rng):
        data = case["template"]  # bytes that are no UTF-8 come from a mutated file: a reader would refuse them
        try:
            text = data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            text = data.decode("utf-8", "replace")
        render(
            text,
            [{"role": "user", "content": "hello"}, {"role": "assistant", "content": ""}],
            True,
            {"bos_token": "<s>"},
        )


class Journals(Target):
    def __init__(self):
        path = seeds() / "journal.sqlite"
        journal = Journal(path)
        entries = [
            Entry(f"{i:064x}", "j", bool(i % 2), 1, "A" if i % 3 else None, "A" * i, None, 3) for i in range(200)
        ]
        journal.put(entries)
        journal.close()
        self.keys = [entry.key for entry in entries[::7]]
        connection = sqlite3.connect(path)
        connection.execute("pragma wal_checkpoint(truncate)")
        connection.close()
        self.base = path.read_bytes()

    def make(self, rng):
        return {"journal.sqlite": mutate.of_bytes(rng, self.base, rng.choice((100, 4096, len(self.base))))}

    def run(self, folder, case, rng):
        journal = Journal(folder / "journal.sqlite")
        try:
            for key in self.keys:
                journal.get(key)
            journal.put([Entry("f" * 64, "j", False, 1, "tie")])
        finally:
            journal.close()


class Replies(Target):
    def __init__(self):
        self.server = Server(seeds())

    def make(self, rng):
        return self.server.case(rng)

    def run(self, folder, case, rng):
        self.server.run(case)


class Checkpoints(Target):
    def __init__(self):
        output = seeds() / "run"
        self.lm = jpo.load("tiny")
        self.lm.add_lora(r=2)
        self.pairs = [{"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Six."}] * 2
        jpo.PreferenceTrainer(self.lm, self.pairs, self.config(output, 3)).train()
        folder = checkpoint.path_of(str(output), 2)
        self.base = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}

    @staticmethod
    def config(output, steps):
        return jpo.PreferenceConfig(
            batch_size=2, steps=steps, save_steps=1, save_total_limit=None, warmup_steps=0, output=str(output)
        )

    def make(self, rng):
        case = dict(self.base)
        name = rng.choice(list(case))
        if name.endswith(".safetensors"):
            case[name] = mutate.of_safetensors(rng, case[name])
        elif name.endswith(".json"):
            case[name] = mutate.of_json(rng, json.loads(case[name]))
        else:
            case[name] = mutate.of_bytes(rng, case[name])
        if rng.random() < 0.05:
            del case[rng.choice(list(case))]
        return case

    def write(self, case, folder):
        place = Path(checkpoint.path_of(str(folder), 2))
        place.mkdir()
        super().write(case, place)

    def run(self, folder, case, rng):
        tensors, state = checkpoint.load(checkpoint.path_of(str(folder), 2), self.lm.trainable.params.size)
        if case != self.base and {k: v for k, v in case.items() if k in self.base} != case:
            raise AssertionError("a damaged checkpoint was taken")


class Records(Target):
    LINES = (
        {"instruction": "Name a colour.", "chosen": "Blue.", "rejected": "Six."},
        {"i_chosen": "a", "r_chosen": "b", "i_reject": "c", "r_reject": "d"},
        {
            "prompt": "p",
            "chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
            "rejected": "r",
        },
        {"prompt": "p", "completion": "c", "label": True},
        {"instruction": "i", "output": "o"},
        {"instruction": "i", "response": "o", "feedback": 1, "responses": ["a", "b"]},
    )

    def make(self, rng):
        name = rng.choice(("r.jsonl", "r.json", "r.jsonl.gz", "r.parquet"))
        lines = [
            mutate.of_value(rng, line) if rng.random() < 0.5 else line
            for line in rng.choices(self.LINES, k=rng.choice((1, 3)))
        ]
        data = mutate.dumped(lines) if name == "r.json" else b"\n".join(map(mutate.dumped, lines)) + b"\n"
        return {name: mutate.of_bytes(rng, data) if rng.random() < 0.5 else data}

    def run(self, folder, case, rng):
        path = str(folder / next(iter(case)))
        read = readers.read_records(path)
        for function in (records.preference_pairs, records.sft_examples, records.candidates, records.items_to_test):
            try:
                function(read)
            except JpoError:
                pass


class Core(Target):
    def __init__(self):
        self.calls = Calls()

    def make(self, rng):
        return {"calls": json.dumps(self.calls.case(rng)).encode()}

    def write(self, case, folder):
        pass

    def run(self, folder, case, rng):
        self.calls.run(json.loads(case["calls"]), rng)


def configs():
    return Directory(("config.json", "generation_config.json", "sharded"))


def named(name):
    """A target with its corpus."""
    target = TARGETS[name]()
    target.kept = tuple(corpus.kept(name))
    target.sound = corpus.sound(target, generator) if target.kept else {}
    return target


def emptied(folder):
    """The folder, with nothing in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with os.scandir(folder) as entries:
        for entry in entries:
            (shutil.rmtree if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)
    return folder


def generator(seed, index):
    """The case's own random numbers: a case can be made again from seed and index alone."""
    return random.Random(f"{seed}/{index}")


TARGETS = {
    "gguf": Gguf,
    "directories": Directory,
    "config": configs,
    "tokenizer": Tokenizers,
    "adapters": Adapters,
    "templates": Templates,
    "journals": Journals,
    "replies": Replies,
    "checkpoints": Checkpoints,
    "records": Records,
    "core": Core,
}
