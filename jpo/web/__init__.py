"""Pages for people, served from this machine: `jpo annotate`, on which they give conditional and joint feedback.

Starlette and uvicorn (extra: pip install 'jpo[web]'); Jinja2 pages, one style sheet and one script of our own, nothing
from elsewhere. Knows candidates and verdicts; never models.
"""
