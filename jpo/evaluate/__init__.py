"""Evaluation: win-rates from verdicts, intervals, paired comparisons."""

from jpo.evaluate.statistics import bootstrap_difference, wilson
from jpo.evaluate.winrate import WinRate, read_verdicts

__all__ = ["WinRate", "bootstrap_difference", "read_verdicts", "wilson"]
