"""One module a command: NAME.py holds the function of `jpo NAME` and register(app), which adds it."""
