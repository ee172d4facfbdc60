"""A made-up table of annotations with effects of length, difficulty and noise, for AlpacaEval's regression."""

import csv

import numpy as np

SIZE = 200


def table(seed):
    """(annotations, rows of a df_gamed.csv): 200 instructions, some draws, some failed verdicts; two gamed
    baselines."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 1, SIZE)
    baseline = rng.integers(50, 2000, SIZE)
    own = np.maximum(1, baseline + rng.normal(200, 400, SIZE).astype(int))
    delta = baseline - own
    z = -0.4 - 1.2 * np.tanh(delta / delta.std(ddof=1)) + 0.6 * difficulty + rng.normal(0, 1, SIZE)
    preferences = np.round(1 + 1 / (1 + np.exp(-2 * z)), 3)
    rows = []
    for place in range(SIZE):
        value = None if place % 37 == 5 else 1.5 if place % 23 == 3 else float(preferences[place])
        texts = {"output_1": "x" * int(baseline[place]), "output_2": "y" * int(own[place])}
        names = {"generator_1": "base", "generator_2": "m", "annotator": "j"}
        rows.append({"index": place, "instruction": f"q{place}", **texts, **names, "preference": value})
    gamed = []
    for model, shift in (("base_verbose", -0.8), ("base_concise", 0.9)):
        for place in range(SIZE):
            length = float(np.round(rng.normal(shift, 0.5), 4))
            preference = 1 / (1 + np.exp(np.tanh(length) + rng.normal(0, 0.5)))
            gamed.append(
                {
                    "preference": round(float(preference), 4),
                    "index": place,
                    "std_delta_len": length,
                    "instruction_difficulty": round(float(difficulty[place]), 6),
                    "not_gamed_baseline": False,
                    "model": model,
                }
            )
    return rows, gamed


def write_gamed(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
