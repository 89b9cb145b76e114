"""The optional libraries: which extra of this distribution brings which, and how to install it.

Knows names only, and imports none of them.
"""

from __future__ import annotations

DISTRIBUTION = "vae-qwen3vl"
EXTRAS = {
    "language": ("transformers", "tokenizers", "gguf", "peft", "accelerate", "yaml"),
    "training": ("DracoPy", "tensorboard"),
    "evaluation": ("nltk",),
    "medical": ("nibabel",),
    "ray": ("ray",),
    "serve": ("fastapi", "uvicorn", "python_multipart", "prometheus_client"),
    "web": ("gradio",),
    "docs": ("mkdocs", "mkdocstrings"),
    "search": ("usearch",),
    "gpu": ("triton",),
}
"""Import names of what each extra brings."""
_WITH_THEM = {"huggingface_hub": "language", "jinja2": "language", "matplotlib": "training"}
"""Libraries that come with those."""


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def extra_of(module: str) -> str | None:
    """Return the extra that brings a module, by the name it is imported under; None for what no extra brings."""
    library = module.partition(".")[0]
    return next((extra for extra, names in EXTRAS.items() if library in names), _WITH_THEM.get(library))


def said_of(error: ImportError) -> str:
    """Return what to tell a person of a library that can't be imported: its name, and the command that installs it.

    An error that says so itself, or is about no library of ours, keeps its words.
    """
    words = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, ModuleNotFoundError) or error.name is None or "pip install" in words:
        return words
    library = error.name.partition(".")[0]
    extra = extra_of(library)
    if extra is not None:
        return f"this needs {library}, which is not installed: {install(extra)}"
    return f"{library} is not installed, which {DISTRIBUTION} needs: pip install {DISTRIBUTION} brings all of it"
