"""python -m jpo: the command line."""

import sys

from jpo.cli.main import main

sys.exit(main())
