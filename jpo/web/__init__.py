"""Pages for people, served from this machine: `jpo annotate`, on which they give conditional and joint feedback, and
`jpo serve`, which offers a model and its adapters to programs and sets two of them side by side for people.

Starlette and uvicorn (extra: pip install 'jpo[web]'); Jinja2 pages, one style sheet and one script of our own a
room, nothing from elsewhere. The rooms share listening, sessions and bounds (listen, security) and nothing else.
"""
