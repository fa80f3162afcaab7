"""The documentation site: ``make docs`` builds it into docs/_build, with warnings as errors."""

import os
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import laplace_fiber  # noqa: E402

project = "laplace-fiber"
author = "The laplace-fiber developers"
project_copyright = author
release = version = laplace_fiber.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"laplace-fiber {release}"
html_show_sphinx = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # the generated tables have headings of their own level

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 100
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False
napoleon_use_rtype = False


class FilesBesideTheDocs(SphinxTransform):
    """Links that leave docs/ work in the repository; on the site they lead to copies of the files they name."""

    default_priority = 1

    def apply(self, **kwargs: Any) -> None:
        """Turn links to pages outside docs/ into downloads, and links to folders into plain text."""
        for link in list(self.document.findall(addnodes.pending_xref)):
            target = (DOCS / link["reftarget"]).resolve()
            page = target.with_name(f"{target.name}.md")  # a page is named without its suffix here
            if DOCS in target.parents:
                continue
            if link.get("refdomain") == "doc" and page.is_file():
                file = "/" + os.path.relpath(page, DOCS)
                link.replace_self(addnodes.download_reference("", "", *link.children, reftarget=file))
            elif target.is_dir():
                link.replace_self(nodes.inline("", "", *link.children))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_transform(FilesBesideTheDocs)
