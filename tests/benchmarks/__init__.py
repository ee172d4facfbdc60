"""The benchmark command: python -m tests.benchmarks."""
