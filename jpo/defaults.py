"""Numbers that several places need, each said once. Imports nothing, so that command lines may read it at their
heads."""

MAX_NEW_TOKENS = 400  # of a sample, as in the paper
CONCURRENCY = 8  # questions to a judge at once
FUNCTION_CONCURRENCY = 64  # where the judge is a function: their verdicts share one sync of the journal
TIMEOUT = 60.0  # seconds for one request to a judge
MAX_ATTEMPTS = 3  # for each question
MAX_TOKENS = 16  # of a judge's reply: enough for "Preferred output: Output (a)"
