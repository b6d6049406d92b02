"""Sphinx: the pages of this folder and an API reference from the docstrings."""

from pathlib import Path

import mmaction_mbcd

project = "mmaction_mbcd"
author = "The mmaction_mbcd developers"
copyright = author  # noqa: A001  (Sphinx's name)
release = mmaction_mbcd.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

highlight_language = "none"

# Pages: $...$ as on GitHub, and links to headings.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Every module of the package gets a page; none is listed by hand.
apidoc_modules = [
    {
        "path": str(Path(mmaction_mbcd.__file__).parent),
        "destination": "api",
        "separate_modules": True,
        "module_first": True,
        "automodule_options": {"members", "show-inheritance"},
    }
]
# A package's __all__ repeats what its modules document.
autodoc_default_options = {"ignore-module-all": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # "Attributes:" as a list; autodoc documents them otherwise
add_module_names = False
python_maximum_signature_line_length = 80


def _short_title(app, docname: str, source: list[str]) -> None:
    """Titles of the API's pages: `models.functional`, for the narrow side bar."""
    if docname.startswith("api/"):
        title, rule, rest = source[0].split("\n", 2)
        title = title.removesuffix(" module").removesuffix(" package")
        title = title.removeprefix("mmaction\\_mbcd.")
        title = "API reference" if docname == "api/modules" else title
        source[0] = "\n".join([title, rule[0] * len(title), rest])


def _in_any_module(app, env, node, content):
    """:class:`HACDataset` in another module's docstring finds datasets.hac's."""
    if node.get("refdomain") != "py" or node.get("refspecific"):
        return None
    node["refspecific"] = True
    return env.domains.python_domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], node["reftarget"], node,
        content,
    )  # fmt: skip


def setup(app) -> None:
    """Sphinx calls this."""
    app.connect("missing-reference", _in_any_module)
    app.connect("source-read", _short_title)


html_theme = "furo"
html_title = f"mmaction_mbcd {release}"
html_show_sphinx = False
