"""Evaluation: samples, win-rates from verdicts and judges, intervals, paired comparisons, AlpacaEval 2's files."""

from jpo.evaluate.alpaca_eval import alpaca_eval_outputs, read_annotations, write_alpaca_eval_outputs
from jpo.evaluate.alpaca_regression import alpaca_length_controlled, read_difficulty
from jpo.evaluate.statistics import bootstrap_difference, length_controlled, t_interval, wilson
from jpo.evaluate.winrate import WinRate, format_table, read_verdicts, win_rates

__all__ = [
    "WinRate",
    "alpaca_eval_outputs",
    "alpaca_length_controlled",
    "bootstrap_difference",
    "format_table",
    "length_controlled",
    "read_annotations",
    "read_difficulty",
    "read_verdicts",
    "t_interval",
    "wilson",
    "win_rates",
    "write_alpaca_eval_outputs",
]
