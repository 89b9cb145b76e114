"""A page in the browser: a mesh in, its codes, words about it and the mesh rebuilt, to look at and to take along.

`workbench` has what a person can do with a shape, `views` what a browser draws, `guide` what a visit is; `components`
and `steps` are the page, `app` and `hosting` serve it.
"""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
"""Scripts, styles and templates that the page is made of."""


def asset_text(name: str) -> str:
    """Return one of them."""
    return (ASSETS / name).read_text(encoding="utf-8")
