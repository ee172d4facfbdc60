"""Fuzz targets that run by themselves: `python -m tests.hostile.fuzz TARGET --cases N --seed S` (see __main__)."""
