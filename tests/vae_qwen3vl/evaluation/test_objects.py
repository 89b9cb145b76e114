"""What is evaluated: which objects of a dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdf_vqvae.codes.folder import CodeFolder
from vae_qwen3vl.evaluation.objects import from_codes


def test_objects_are_the_test_split_or_what_training_kept_apart(codes: Path) -> None:
    found = from_codes(CodeFolder(codes), split=None, most=0)
    assert (found.split, [one.name for one in found.objects]) == ("test", ["object4"])
    with pytest.raises(ValueError, match="no object of the split 'new' \\(it has test, train, val\\)"):
        from_codes(CodeFolder(codes), split="new", most=0)
