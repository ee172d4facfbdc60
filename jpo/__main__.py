"""python -m jpo: the command line."""

from jpo.cli.main import main

main()
