"""The harness's client of servers (local-completions) against `jpo serve`, beside our own model inside the harness."""

import numpy as np
import pytest
from parity.test_lm_eval import TASKS, evaluated, folder
from web.servers import Serve

assert folder  # the fixture of the models and tasks


def test_scores_through_the_server_equal_our_own(folder, monkeypatch):
    pytest.importorskip("tenacity")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from jpo.integrations.lm_eval import JpoLM

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the tokenizer is the server's
    server = Serve("--adapter", f"after={folder / 'adapter'}", model=str(folder / "base"))
    try:
        options = {"base_url": f"{server.url}/v1/completions", "max_length": 60, "num_concurrent": 4, "batch_size": 2}
        for model, given in (("base", {}), ("after", {"adapter": str(folder / "adapter")})):
            theirs = evaluated(LocalCompletionsAPI(model=model, **options), folder)
            ours = evaluated(JpoLM(str(folder / "base"), max_length=60, **given), folder)
            for task in TASKS:
                for a, b in zip(ours["samples"][task], theirs["samples"][task], strict=True):
                    if task == "jpo_generate":
                        assert a["resps"] == b["resps"]
                        continue
                    got, want = ([np.atleast_1d(np.array(r, object)) for r in s["filtered_resps"]] for s in (a, b))
                    for one, other in zip(got, want, strict=True):
                        assert float(one[0]) == pytest.approx(float(other[0]), rel=1e-4), task
                        assert [str(x) for x in one[1:]] == [str(x) for x in other[1:]], "greedy or not"
    finally:
        server.stop()
