"""What the tests of the language branch share: tiny real VL models, a foreign VAE, a real small tokenizer."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

KINDS = ["qwen2_vl", "qwen3_vl"]


def beside(name: str) -> ModuleType:
    """Load a helper module of this folder, which is no package."""
    full_name = f"vae_qwen3vl_tests_{name}"
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full_name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[full_name]


tiny = beside("tiny")


@pytest.fixture(scope="session")
def twin():
    """The plain, slow twin of the language branch."""
    return beside("slow_twin")


@pytest.fixture(scope="session")
def worker():
    """What one process of a distributed run does."""
    return beside("ddp_worker")


@pytest.fixture(scope="session")
def align():
    """What one process of an alignment run does."""
    return beside("align_worker")


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.build_tokenizer()


@pytest.fixture(scope="session")
def qwen_tokenizer():
    """Qwen's own tokenizer and chat template, fetched once; skips where it can't be had."""
    from transformers import AutoTokenizer

    fetched = beside("qwen_tokenizer")
    try:
        folder = fetched.qwen_tokenizer_folder()
    except fetched.UnreachableError as error:
        pytest.skip(str(error))
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(params=KINDS)
def vl_model(request) -> nn.Module:
    return tiny.build_vl(request.param)


@pytest.fixture(scope="session")
def vl_models() -> dict[str, nn.Module]:
    """Both kinds, for tests that change nothing in them."""
    return {kind: tiny.build_vl(kind) for kind in KINDS}


@pytest.fixture
def vae():
    return tiny.ForeignVAE()


@pytest.fixture(scope="session")
def make_batch():
    return tiny.build_batch


@pytest.fixture(scope="session")
def make_codes():
    return tiny.build_codes


@pytest.fixture(scope="session")
def make_vl():
    return tiny.build_vl
