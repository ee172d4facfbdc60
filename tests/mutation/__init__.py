"""Whether the tests notice: `python -m tests.mutation --area AREA` (see __main__)."""
