"""Sphinx's settings: MyST Markdown, the pydata theme, the programming interface out of docstrings, the command line out of
typer. `python -m sphinx -W -b html .github/docs build/docs` from the repository's root, with the extra docs."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parents[1])]
import jpo  # noqa: E402

project = "jpo"
author = "the jpo contributors"
copyright = "Apache-2.0"
version = release = jpo.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "plain_docstrings",
    "command_line",
    "mathml",
]
exclude_patterns = ["extensions", "static"]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests/docs runs every block
html_math_renderer = "mathml"  # read by browsers themselves: no script, nothing from elsewhere
smartquotes = False  # --option stays two hyphens

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "pydata_sphinx_theme"
html_title = "jpo"
html_static_path = ["static"]
html_css_files = ["jpo.css"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": True,
    "show_toc_level": 2,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
