"""jpo: Joint Preference Optimization of language models on the CPU."""
