"""Samples of a model for many instructions, temperatures and seeds, in a file that an interrupted run goes on with.

A sample is a function of (model, settings, temperature, seed, the instruction's identity, its own number). Prompts
decode side by side in blocks cut by the records alone, so that a resumed run draws bit for bit what an undisturbed one
draws. Another cut into blocks rounds differently in the last bits, which turns a draw that falls between two tokens:
about one in a thousand with SmolLM2's 49152 tokens at temperature 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jpo.cache import CacheType, check_type, row_bytes
from jpo.data import Encoder, Template
from jpo.data.texts import plain, text_key
from jpo.defaults import MAX_NEW_TOKENS
from jpo.disk import lock, make_folder_of, naming_faults, settle
from jpo.errors import DataError, JpoError
from jpo.evaluate.items import Item, digest, items_of
from jpo.parallel.shards import Shard

_BEGINS = b'{"id": '  # every line of a file of samples
_STREAMS = 32  # samples that decode side by side
_CACHE_BYTES = 1 << 30  # and what their keys and values may take at most
_UNSAID = {"cache_dtype": "float32"}  # what rows mean that do not say it
Progress = Callable[[int, int], None]  # (done, total)
Cell = tuple[str, float, int, int]  # identity, temperature, seed, sample


@dataclass(frozen=True)
class Sampling:
    """What is drawn for every instruction: n samples at each temperature (0 is greedy) with each seed.

    The paper's preset: temperatures 0.001, 0.5, 1.0, top_k 50, max_new_tokens 400.
    """

    temperatures: Sequence[float] = (1.0,)
    seeds: Sequence[int] = (0,)
    n: int = 1
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = MAX_NEW_TOKENS
    stop: Sequence[str] = ()
    cache_dtype: CacheType = "float32"  # of keys and values, see jpo.generation

    def __post_init__(self) -> None:
        for name in ("temperatures", "seeds"):
            values = list(getattr(self, name))
            if not values or len(set(values)) != len(values):
                raise JpoError(f"{name}: expected one or more different ones, got {values}")
        if any(isinstance(t, bool) or not 0 <= t < float("inf") for t in self.temperatures):
            raise JpoError(f"temperatures: expected numbers of at least 0 (0 is greedy), got {list(self.temperatures)}")
        check_type(self.cache_dtype)
        if isinstance(self.n, bool) or not 1 <= self.n < 1 << 20:
            raise JpoError(f"n: expected a positive whole number, got {self.n!r}")


def encoder_of(
    lm: Any, adapter: Mapping[str, Any] | None = None, template: str | None = None, conversational: bool = False
) -> Encoder:
    """How prompts are made: by `template` (a name, or a text with {instruction} and {response}), else as the adapter
    was trained, else as training would choose: for `conversational` records the model's own chat template.

    adapter: what lm.load_adapter returned. Lengths are the adapter's, within the model's positions.
    """
    own = dict(adapter or {})
    if template or "template" not in own:
        chosen = Template.named(template or None, lm.tokenizer, conversational)
    else:
        chosen = Template.from_dict(own["template"])
    longest = min(int(own.get("max_length", 1024)), int(lm.config["max_position_embeddings"]))
    prompt = min(int(own.get("max_prompt_length", 512)), longest - 1)
    return Encoder(lm.tokenizer, chosen, longest, prompt, own.get("truncation", "keep_start"))


def weights_digest(lm: Any, whole: bool = False) -> str:
    """Sixteen digits that differ where a model's weights, adapter, compute type or storage do.

    Of each stored tensor three places of 4 KiB are read, or all of it where values are kept by the digest for years
    (whole); of an adapter everything."""
    sha = hashlib.sha256()
    for name, tensor in sorted(lm._checkpoint.tensors.items()):
        data = tensor.data
        sha.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        if whole:
            sha.update(np.ascontiguousarray(data).data)
            continue
        for start in (0, len(data) // 2, max(len(data) - 4096, 0)):
            sha.update(data[start : start + 4096].tobytes())
    if lm.trainable is not None and lm._adapter_on:
        sha.update(repr((lm.lora, lm.full)).encode())
        sha.update(lm.trainable.params.data)
    return digest([sha.hexdigest(), lm.config, lm.compute, lm.storage])


def fingerprint(lm: Any, encoder: Encoder, stop: Sequence[str] = ()) -> str:
    """Sixteen digits that differ where the model's do (weights_digest), its template, prompt lengths or stop
    strings."""
    rest = [list(stop), encoder.template.to_dict(), encoder.max_prompt_length, encoder.truncation]
    return digest([weights_digest(lm), rest])


def sample(
    lm: Any,
    records: Iterable[Mapping[str, Any]],
    settings: Sampling | None = None,
    *,
    encoder: Encoder | None = None,
    output: str | os.PathLike[str] | None = None,
    model: str | None = None,
    extra: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Rows {id, instruction, output, temperature, seed, sample, model, ...}: for each temperature and seed, each
    record's n samples.

    records: with `instruction` (or `prompt`) and, where they have one, `id` or `instruction_id`.
    encoder: see encoder_of; default: the paper's template.
    output: a JSONL file, synced block by block; what it holds already is not drawn again.
    model: the name written into the rows (default: the model's source).
    extra: further keys of every row, such as training_seed. progress(done, total) after each block.
    JpoError where `output` was sampled by another model, with other settings or other instructions.
    """
    rows = iter_samples(
        lm, records, settings, encoder=encoder, output=output, model=model, extra=extra, progress=progress
    )
    return list(rows)


def iter_samples(
    lm: Any,
    records: Iterable[Mapping[str, Any]],
    settings: Sampling | None = None,
    *,
    encoder: Encoder | None = None,
    output: str | os.PathLike[str] | None = None,
    model: str | None = None,
    extra: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    shard: Shard | None = None,
    overwrite: bool = False,
) -> Iterator[dict[str, Any]]:
    """The rows of `sample` one by one, as they are drawn or read back; of a shard, its run of blocks alone.

    overwrite: draw anew into output.part, which replaces `output` after the last block; until then that stands as it
    was. An interrupted run's output.part is gone on with where it is of the same model, settings and instructions."""
    settings = settings or Sampling()
    encoder = encoder or encoder_of(lm)
    items = items_of(records)
    marks = {
        "model": model or lm.source,
        **(extra or {}),
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "max_new_tokens": settings.max_new_tokens,
        **({} if settings.cache_dtype == "float32" else {"cache_dtype": settings.cache_dtype}),
        "fingerprint": fingerprint(lm, encoder, settings.stop),
    }
    path = None if output is None else os.fspath(output)
    place = f"{path}.part" if path is not None and overwrite else path
    blocks = list(_blocks(items, settings, _block_size(lm, encoder, settings)))
    if shard is not None:
        blocks = blocks[slice(*shard.range(len(blocks)))]
    total = settings.n * sum(len(block) for _, _, block in blocks)
    done = 0
    with _appended(place, path, shard is None or overwrite) as file:
        known = {} if place is None else _known(place, {item.key: item for item in items}, marks, overwrite)
        for temperature, seed, block in blocks:
            rows = _block_rows(lm, encoder, settings, temperature, seed, block, known, marks)
            fresh = [row for row in rows if _cell(row) not in known]
            if file is not None and fresh:
                file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in fresh)
                file.flush()
                os.fsync(file.fileno())
            done += len(rows)
            if progress is not None:
                progress(done, total)
            yield from rows


@contextlib.contextmanager
def _appended(path: str | None, final: str | None, alone: bool) -> Iterator[Any]:
    """The file, open for appending, and renamed to `final` at the end; None where no output is asked for.
    alone: whether this is the file's one writer; a shard's caller sees to that."""
    if path is None or final is None:
        yield None
        return
    with naming_faults(path, "mend this and run the command again: it goes on where it was"):
        make_folder_of(path)
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            if alone:
                lock(file, f"{path}: another process samples into it; wait for it, or give another --output")
            yield file
        if path != final:
            settle(path, final)


def remaining(path: str | os.PathLike[str], total: int) -> int:
    """How many of `total` samples a resumed file does not hold yet; its lines are counted, not checked."""
    if not os.path.exists(path):
        return total
    with open(path, "rb") as file:
        return max(0, total - sum(line.endswith(b"\n") for line in file))


def _block_size(lm: Any, encoder: Encoder, settings: Sampling) -> int:
    """Instructions that decode side by side: a function of the settings and the model's shape alone."""
    c = lm.config
    room = min(settings.max_new_tokens, int(c["max_position_embeddings"]))
    rows = encoder.max_prompt_length + min(settings.n, _STREAMS) * room
    return max(1, min(_STREAMS // settings.n, _CACHE_BYTES // (rows * row_bytes(c, settings.cache_dtype))))


def _blocks(items: Sequence[Item], settings: Sampling, size: int) -> Iterator[tuple[float, int, Sequence[Item]]]:
    for temperature in settings.temperatures:
        for seed in settings.seeds:
            for first in range(0, len(items), size):
                yield float(temperature), int(seed), items[first : first + size]


def _block_rows(
    lm: Any,
    encoder: Encoder,
    settings: Sampling,
    temperature: float,
    seed: int,
    block: Sequence[Item],
    known: Mapping[Cell, dict[str, Any]],
    marks: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """All rows of a block: read back where all are known, else drawn together, so that they come out as ever."""
    cells = [(item.key, temperature, seed, number) for item in block for number in range(settings.n)]
    if all(cell in known for cell in cells):
        return [known[cell] for cell in cells]
    drawn = lm.generate(
        [encoder.prompt_text(item.instruction) for item in block],
        n=settings.n,
        temperature=temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_new_tokens=settings.max_new_tokens,
        seed=seed,
        stop=tuple(settings.stop),
        ids=[item.number for item in block],
        cache_dtype=settings.cache_dtype,
    )
    rows = []
    for item, completions in zip(block, drawn, strict=True):
        for number, completion in enumerate(completions):
            row = {"id": item.id, "instruction": plain(item.instruction), "output": completion.text.strip()}
            row |= {"temperature": temperature, "seed": seed, "sample": number, **marks}
            rows.append(row | {"finish_reason": completion.finish_reason, "tokens": len(completion.token_ids)})
    return [known.get(cell, row) for cell, row in zip(cells, rows, strict=True)]


# --- resumption ---------------------------------------------------------------------------------------------------


def _cell(row: Mapping[str, Any]) -> Cell:
    return str(row["id"]), float(row["temperature"]), int(row["seed"]), int(row["sample"])


def _known(
    path: str, items: Mapping[str, Item], marks: Mapping[str, Any], overwrite: bool
) -> dict[Cell, dict[str, Any]]:
    """As _resumable; what does not belong to this run goes where the run overwrites, and refused elsewhere."""
    try:
        return _resumable(path, items, marks)
    except JpoError:
        if not overwrite:
            raise
        os.truncate(path, 0)
        return {}


def _resumable(path: str, items: Mapping[str, Item], marks: Mapping[str, Any]) -> dict[Cell, dict[str, Any]]:
    """The rows that `path` holds, checked; a torn last line is cut off the file."""
    known: dict[Cell, dict[str, Any]] = {}
    whole = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                if not line.startswith(_BEGINS[: len(line)]):
                    raise _no_row(path, number)  # a file of something else: nothing is cut off it
                break  # the run before was killed within this line
            row = _parsed(line, path, number)
            _check(row, f"{path}, line {number}", items, marks)
            known[_cell(row)] = row
            whole += len(line)
    if whole < os.path.getsize(path):
        os.truncate(path, whole)
    return known


def _parsed(line: bytes, path: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
        _cell(row)
        row["instruction"], row["output"]
    except (ValueError, KeyError, TypeError):
        raise _no_row(path, number) from None
    return dict(row)


def _no_row(path: str, number: int) -> DataError:
    return DataError(
        f"{path}, line {number}: not a line of jpo generate; give another --output, or --overwrite to sample anew"
    )


def _check(row: Mapping[str, Any], where: str, items: Mapping[str, Item], marks: Mapping[str, Any]) -> None:
    remedy = "give another --output, or --overwrite to sample anew"
    for key, value in (_UNSAID | dict(marks)).items():
        if row.get(key, _UNSAID.get(key)) != value:
            what = (
                "other weights, adapter, template, lengths, stop strings, storage or compute type"
                if key == "fingerprint"
                else f"{key} {row.get(key, _UNSAID.get(key))!r}, now {value!r}"
            )
            raise JpoError(f"{where}: was sampled with {what}; {remedy}")
    item = items.get(str(row["id"]))
    if item is not None and text_key(item.instruction) != _row_key(row["instruction"]):
        raise JpoError(f"{where}: the id {row['id']!r} has another instruction than at {item.where}; {remedy}")


def _row_key(instruction: Any) -> str:
    return text_key(instruction if isinstance(instruction, str) else tuple(instruction))
