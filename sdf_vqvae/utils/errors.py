"""Errors as people read them, and which of them mean that memory ran out."""

from __future__ import annotations

_BRIEF = 200


def one_line(error: BaseException) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def brief(error: BaseException) -> str:
    """Return the beginning of an error's message, at most 200 characters, as one line."""
    return one_line(error)[:_BRIEF]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there was no memory left, on the device or the host."""
    import torch

    # PyTorch says it by the error's type on CUDA, in words on a CPU.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
