"""The documentation site: `sphinx-build -W docs outputs/docs`, and open outputs/docs/index.html."""

import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the sources that stand beside these pages, and no other

configuration = ConfigParser()
configuration.read(ROOT / "setup.cfg", encoding="utf-8")

project = "zfnet"
author = "The zfnet authors"
copyright = author
release = version = configuration["metadata"]["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["examples", "README.md"]
suppress_warnings = ["config.cache"]

highlight_language = "none"  # formulas and commands; Python says so
default_role = "code"  # docstrings write code in single backticks, as Markdown does
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # DECONVNET, not the table that it stands for
maximum_signature_line_length = 88  # a longer one has a line for each argument
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes as one list
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "matplotlib_animations": False,
    "capture_repr": (),
    "write_computation_times": False,
    "remove_config_comments": True,
    "show_memory": False,
    "min_reported_time": 3600,
    "abort_on_example_error": True,
}

html_theme = "furo"
html_title = f"zfnet {version}"
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False


def skip_fields(app, what, name, member, skip, options):
    """Leave out the fields of named tuples that only Python describes; the class's own text names them."""
    return True if str(getattr(member, "__doc__", "")).startswith("Alias for field number") else None


def setup(app):
    app.connect("autodoc-skip-member", skip_fields)
