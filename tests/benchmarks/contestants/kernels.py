"""Log-likelihoods of given logits, and of hidden states under a head: jpo's public kernels, torch's and Liger's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from . import LeftOut, Variant, contestant

INNER = 3  # calls a turn; their median counts
LOGITS = ("logps", "logps-gradient")
LINEAR = ("linear-logps-49152", "linear-logps-262144")
FORMS = ("log_softmax", "cross_entropy", "logsumexp")


def timed(call: Callable[[], Any], prepare: Callable[[], Any] = lambda: None) -> dict[str, float]:
    """Median seconds of INNER calls, what prepares them left out."""
    seconds = []
    for _ in range(INNER):
        prepare()
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds)}


def logits_of(work: Any) -> tuple[Any, Any]:
    """(1, T, V) float32 logits and (1, T) labels."""
    import numpy as np

    random = np.random.default_rng(0)
    logits = random.standard_normal((1, work["tokens"], work["vocab"]), dtype=np.float32)
    return logits, random.integers(0, work["vocab"], (1, work["tokens"]))


def linear_of(work: Any, tokens: int = 0) -> tuple[Any, Any, Any]:
    """(1, T, H) hidden states, (V, H) head, (1, T) labels."""
    import numpy as np

    random = np.random.default_rng(0)
    tokens = tokens or work["tokens"]
    hidden = random.standard_normal((1, tokens, work["hidden"]), dtype=np.float32)
    weight = random.standard_normal((work["vocab"], work["hidden"]), dtype=np.float32) / work["hidden"] ** 0.5
    return hidden, weight, random.integers(0, work["vocab"], (1, tokens))


@contestant("jpo", enters=LOGITS, variants=(Variant("float32"),), gigabytes=0.6)
def jpo_logps(work: Any, turns: Any) -> None:
    """sequence_logps, or its gradient in place."""
    import numpy as np

    import jpo

    logits, labels = logits_of(work)
    if not work["gradient"]:
        return turns.loop(lambda turn: timed(lambda: jpo.sequence_logps(logits, labels)))
    kept, one = logits.copy(), np.ones(1)
    turns.loop(
        lambda turn: timed(
            lambda: jpo.sequence_logps_grad(logits, labels, one, out=logits), lambda: np.copyto(logits, kept)
        )
    )


@contestant(
    "torch",
    enters=LOGITS,
    needs=("torch",),
    gigabytes=1.5,
    variants=tuple(
        Variant(f"{form}{', compiled' * compiled}{', tcmalloc' * (allocator != 'glibc')}",
                {"form": form, "compiled": compiled}, allocator)
        for form in FORMS for compiled in (False, True) for allocator in ("glibc", "tcmalloc")
        if not compiled or (allocator == "tcmalloc" and form != "cross_entropy")
    ),
)  # fmt: skip
def torch_logps(work: Any, turns: Any, form: str, compiled: bool) -> None:
    """Three ways to write it; compiled by inductor where a C++ compiler is there."""
    import torch

    array, labels = logits_of(work)
    logits, targets = torch.from_numpy(array)[0, :-1], torch.from_numpy(labels)[0, 1:]
    forms = {
        "log_softmax": lambda z: z.log_softmax(-1).gather(1, targets[:, None]).sum(),
        "cross_entropy": lambda z: -torch.nn.functional.cross_entropy(z, targets, reduction="sum"),
        "logsumexp": lambda z: (z.gather(1, targets[:, None])[:, 0] - z.logsumexp(-1)).sum(),
    }
    call = torch.compile(forms[form]) if compiled else forms[form]
    logits.requires_grad_(work["gradient"])

    def run() -> None:
        value = call(logits)
        if work["gradient"]:
            logits.grad = None
            value.backward()

    try:
        run()
    except Exception as error:
        if compiled:
            raise LeftOut(f"torch.compile does not work here ({type(error).__name__})") from error
        raise
    turns.loop(lambda turn: timed(run))


@contestant("jpo", enters=LINEAR, variants=(Variant("float32"),), gigabytes=1.5)
def jpo_linear(work: Any, turns: Any) -> None:
    """linear_logps; what four times the rows add to the peak memory is reported too."""
    import jpo

    from ..turns import peak_gigabytes

    hidden, weight, labels = linear_of(work)
    more, _, more_labels = linear_of(work, 4 * work["tokens"])
    jpo.linear_logps(hidden, weight, labels)
    before = peak_gigabytes()
    jpo.linear_logps(more, weight, more_labels)
    added = {"added_gb": peak_gigabytes() - before}
    turns.loop(lambda turn: timed(lambda: jpo.linear_logps(hidden, weight, labels)) | added)


@contestant("bare sgemm", enters=LINEAR, needs=("numpy",), gigabytes=2)
def bare_sgemm(work: Any, turns: Any) -> None:
    """NumPy's product of the same shape into an array that is there already."""
    import numpy as np

    hidden, weight, _ = linear_of(work)
    out = np.zeros((work["tokens"], work["vocab"]), dtype=np.float32)
    turns.loop(lambda turn: timed(lambda: np.matmul(hidden[0], weight.T, out=out)))


@contestant(
    "torch chunked", enters=LINEAR, needs=("torch",), gigabytes=2,
    variants=tuple(Variant(f"{rows} rows, tcmalloc", {"rows": rows}, "tcmalloc") for rows in (128, 1024)),
)  # fmt: skip
def torch_linear(work: Any, turns: Any, rows: int) -> None:
    """Logits of `rows` rows at a time, cross-entropy of each chunk."""
    import torch

    hidden, weight, labels = (torch.from_numpy(array) for array in linear_of(work))
    targets = labels[0, 1:]

    def run() -> None:
        with torch.no_grad():
            for h, t in zip(hidden[0, :-1].split(rows), targets.split(rows)):
                torch.nn.functional.cross_entropy(h @ weight.T, t, reduction="none")

    turns.loop(lambda turn: timed(run))


@contestant(
    "Liger",
    enters=LINEAR,
    needs=("liger-kernel", "torch"),
    gigabytes=4,
    variants=(Variant("tcmalloc", {}, "tcmalloc"),),
)
def liger_linear(work: Any, turns: Any) -> None:
    """liger-kernel's chunked fused linear DPO loss: it computes the gradients too, there is no forward alone."""
    import torch

    try:
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss
    except Exception as error:
        raise LeftOut(f"liger-kernel does not import on this machine ({type(error).__name__}: {error})") from error
    hidden, weight, labels = (torch.from_numpy(array) for array in linear_of(work))
    pair = hidden.reshape(2, -1, work["hidden"]).requires_grad_(True)
    loss = LigerFusedLinearDPOLoss(use_ref_model=False, compute_nll_loss=False, compiled=False)
    targets = labels.reshape(2, -1)
    turns.loop(lambda turn: timed(lambda: loss(weight, pair, targets)))
