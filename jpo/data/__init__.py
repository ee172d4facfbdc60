"""Records, templates, token ids and batches: all that stands between a file of preferences and the model."""

from jpo.data.batches import Order, forest_rows, micro_batches, permutation
from jpo.data.encoding import Encoded, EncodedPair, Encoder
from jpo.data.readers import Record, iter_records, read_records, write_records
from jpo.data.records import (
    Candidate,
    Example,
    Pair,
    TestItem,
    candidates,
    feedback_candidates,
    items_to_test,
    preference_pairs,
    sft_examples,
)
from jpo.data.report import Report
from jpo.data.templates import Template

__all__ = [
    "Candidate",
    "Encoded",
    "EncodedPair",
    "Encoder",
    "Example",
    "Order",
    "Pair",
    "Record",
    "Report",
    "Template",
    "TestItem",
    "candidates",
    "feedback_candidates",
    "forest_rows",
    "items_to_test",
    "iter_records",
    "micro_batches",
    "permutation",
    "preference_pairs",
    "read_records",
    "sft_examples",
    "write_records",
]
