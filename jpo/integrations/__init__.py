"""Bridges to other people's programs: each imports that program, none is imported by the rest of jpo."""
