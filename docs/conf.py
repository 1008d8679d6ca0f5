"""The site: MyST pages and executed notebooks, built by Sphinx; see CONTRIBUTING.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import pyro_sep

project = "pyro_sep"
author = "the pyro_sep authors"
release = version = pyro_sep.__version__

extensions = [
    "doors",
    "figures",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
# With nb_execution_mode=off nothing tells the language of a notebook's cells.
suppress_warnings = ["myst-nb.lexer"]
html_theme = "furo"
html_title = "pyro_sep"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_use_ivar = True

# A reference that leads nowhere fails the build; those to other libraries have no inventory here.
nitpicky = True
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(arviz|Client|Fabric|collections|matplotlib|numpy|os|pandas|pathlib|pyro|torch|torchaudio|xarray|xr)\b.*",
    ),
]
