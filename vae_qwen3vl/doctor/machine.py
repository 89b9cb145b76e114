"""Facts about this machine and this installation, as `doctor` judges them.

Looks and measures; decides nothing, and changes nothing (a temporary file tells whether a folder can be written).
The one question it asks the network is whether pip's index answers, and only if the default language model has yet
to be fetched.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path

import torch

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.checkpoint import CONFIG_NAME, DEFAULT, FINER, WEIGHTS_NAME, shipped_tokenizers
from sdf_vqvae.sparse.conv import active_backend
from sdf_vqvae.utils.extras import DISTRIBUTION, EXTRAS
from sdf_vqvae.utils.files import sha256_of
from sdf_vqvae.utils.runtime import usable_cores
from vae_qwen3vl.doctor.probes import ask_pip, cgroup_limits, driver_cuda, free_bytes, memory_available, write_fault
from vae_qwen3vl.language.default_model import default_lm_folder, verify_default_lm
from vae_qwen3vl.language.model_wheel import cache_root
from vae_qwen3vl.trained_parts import LORA_NAME, PROJECTOR_NAME

CORE = ("torch", "numpy", "scipy", "trimesh", "safetensors", "libigl")
LIBRARIES = (*CORE, "transformers", "tokenizers", "peft")
IF_PRESENT = ("torchvision", "triton", "accelerate", "spconv-triton")
"""Libraries that are told of only where they are installed."""
SHOWN = (DISTRIBUTION, "python", "system", *LIBRARIES, *IF_PRESENT)
"""Names whose versions are worth a line."""
NOT_INSTALLED = "not installed"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found. The defaults are a machine on which nothing is wrong, for tests to change."""

    versions: dict[str, str] = field(default_factory=lambda: {"torch": torch.__version__})
    """Of libraries, Python and the system."""
    requirements: tuple[tuple[str, str], ...] = (("", "torch"),)
    """(extra, requirement) of this distribution, extra "" for the core; empty if they aren't known."""
    torchvision_needs: str | None = None
    """The installed torchvision's requirement on torch."""
    missing_extras: dict[str, list[str]] = field(default_factory=dict)
    """Extra -> import names that are not there."""

    nvidia_gpu: bool = False
    """Whether the system has an NVIDIA GPU, whatever PyTorch sees."""
    torch_cuda: str | None = None
    """CUDA (or ROCm) release that PyTorch was built for; None for a CPU build."""
    driver_cuda: tuple[int, int] | None = None
    """Newest CUDA release that the NVIDIA driver runs; None if the driver can't be asked."""
    cuda_visible_devices: str | None = None
    """The environment variable."""
    gpus: tuple[tuple[str, int, int, int], ...] = ()
    """(name, bytes, major, minor) of the GPUs that PyTorch sees."""
    torch_archs: tuple[str, ...] = ()
    """GPU architectures that PyTorch has kernels for, as `sm_90`, `compute_90`."""

    sparse_backend: str | None = None
    """The environment variable SPARSE_BACKEND."""
    backends: dict[str, str] = field(default_factory=lambda: {"cpu": "torch"})
    """Device type -> sparse convolution backend; empty if SPARSE_BACKEND is unknown."""
    spconv: tuple[str, ...] = ()
    """Installed distributions of spconv."""
    triton: bool = False

    cpu: str = ""
    cores: int = 8
    usable_cores: int = 8
    """Cores that this process may use: affinity and quota of its control group."""
    threads: int = 8
    """Threads that PyTorch starts."""
    omp_num_threads: str | None = None
    """The environment variable."""
    memory: int = 64 << 30
    """Bytes of memory that this process may use."""
    memory_available: int | None = None
    """Bytes of memory that are free now, if known."""

    cache: str = ""
    """Folder for what is fetched."""
    cache_free: int = 1 << 40
    cache_fault: str | None = None
    """Why nothing can be written there."""
    folder: str = ""
    """The current folder."""
    folder_free: int = 1 << 40
    folder_fault: str | None = None

    offline: tuple[str, ...] = ()
    """Environment variables that keep the Hugging Face Hub's client from the network, as NAME=value."""
    pip_fault: str | None = None
    """Why pip can't fetch the default language model; looked for only if that is needed."""
    pip_elsewhere: bool = False
    """Whether pip is told of further places to look."""

    language_model: str | None = None
    """Folder of the default language model; None if it has yet to be fetched."""
    damaged_files: tuple[str, ...] = ()
    """Files of it that changed."""
    weights: dict[str, str | None] = field(default_factory=dict)
    """tokenizer, sdf_vqvae_512, projector, adapter -> shipped file, None for what isn't shipped."""
    damaged_weights: dict[str, str] = field(default_factory=dict)
    """Shipped file -> what is wrong with it."""

    @property
    def cuda(self) -> bool:
        """Whether PyTorch can use a GPU."""
        return bool(self.gpus)


def look() -> Machine:
    """Look at this machine. Takes seconds: half a gigabyte of weights is hashed."""
    weights = _weights()
    lm, root, folder = default_lm_folder(), cache_root(), Path.cwd()
    pip_fault, pip_elsewhere = (None, False) if lm is not None else ask_pip()
    limit_cpus, limit_memory = cgroup_limits()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    usable = usable_cores()
    requirements = _requirements()
    backend, backends = os.environ.get("SPARSE_BACKEND"), {}
    cuda = torch.cuda.is_available()
    logger = logging.getLogger(active_backend.__module__)
    logger.disabled = True  # its warning is one of the findings
    with contextlib.suppress(ValueError):  # an unknown SPARSE_BACKEND, which is one, too
        backends = {device: active_backend(device) for device in (("cpu", "cuda") if cuda else ("cpu",))}
    logger.disabled = False
    return Machine(
        versions=_versions(text for _, text in requirements),
        requirements=requirements,
        torchvision_needs=_needs("torchvision", "torch"),
        missing_extras=missing_extras(EXTRAS if cuda else EXTRAS.keys() - {"gpu"}),
        nvidia_gpu=any(map(os.path.exists, ("/dev/nvidia0", "/usr/lib/wsl/lib/libcuda.so.1"))),
        torch_cuda=torch.version.cuda or torch.version.hip,
        driver_cuda=driver_cuda(),
        cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        gpus=_gpus() if cuda else (),
        torch_archs=tuple(torch.cuda.get_arch_list()) if cuda else (),
        sparse_backend=backend,
        backends=backends,
        spconv=tuple(sorted(d for d in _distributions() if d.startswith("spconv"))),
        triton=find_spec("triton") is not None,
        cpu=platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        usable_cores=max(1, min(usable, usable if limit_cpus is None else round(limit_cpus))),
        threads=torch.get_num_threads(),
        omp_num_threads=os.environ.get("OMP_NUM_THREADS"),
        memory=memory if limit_memory is None else min(memory, limit_memory),
        memory_available=memory_available(),
        cache=str(root),
        cache_free=free_bytes(root),
        cache_fault=write_fault(root),
        folder=str(folder),
        folder_free=free_bytes(folder),
        folder_fault=write_fault(folder),
        offline=tuple(
            f"{name}={os.environ[name]}"
            for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
            if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        ),
        pip_fault=pip_fault,
        pip_elsewhere=pip_elsewhere,
        language_model=None if lm is None else str(lm),
        damaged_files=() if lm is None else tuple(verify_default_lm(lm)),
        weights={name: None if path is None else str(path) for name, path in weights.items()},
        damaged_weights=damaged_weights([path for path in weights.values() if path is not None]),
    )


# -- libraries -------------------------------------------------------------------------------------------------


def missing_extras(extras: Iterable[str]) -> dict[str, list[str]]:
    """Return the given extras that are not complete, with the import names they lack."""
    lacking = {extra: [name for name in EXTRAS[extra] if find_spec(name) is None] for extra in sorted(extras)}
    return {extra: names for extra, names in lacking.items() if names}


def _versions(requirements: Iterable[str]) -> dict[str, str]:
    """Return the versions of the given requirements, of what is shown, of Python and of the system."""
    versions = {
        DISTRIBUTION: _version(DISTRIBUTION),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    versions |= {name: _version(name) for name in LIBRARIES}
    others = (*IF_PRESENT, *(re.split(r"[^\w.-]", text)[0] for text in requirements))
    return versions | {name: version for name in others if (version := _version(name)) != NOT_INSTALLED}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def _distributions() -> set[str]:
    return {str(d.metadata["Name"]) for d in metadata.distributions()}


def _requirements() -> tuple[tuple[str, str], ...]:
    """Return what this distribution's metadata asks for on this system, by extra."""
    try:
        from packaging.requirements import Requirement

        declared = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    except (ImportError, metadata.PackageNotFoundError):
        return ()
    requirements = []
    for needed in declared:
        extras = [e for e in ("", *EXTRAS) if needed.marker is None or needed.marker.evaluate({"extra": e})]
        requirements += [(extra, f"{needed.name}{needed.specifier}") for extra in extras[:1]]
    return tuple(requirements)


def _needs(distribution: str, other: str) -> str | None:
    """Return what one installed distribution asks of another."""
    try:
        from packaging.requirements import Requirement

        declared = map(Requirement, metadata.requires(distribution) or ())
    except (ImportError, metadata.PackageNotFoundError):
        return None
    return next((f"{needed.name}{needed.specifier}" for needed in declared if needed.name == other), None)


# -- GPUs and weights -------------------------------------------------------------------------------------------


def _gpus() -> tuple[tuple[str, int, int, int], ...]:
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return tuple((about.name, about.total_memory, about.major, about.minor) for about in properties)


def _weights() -> dict[str, Path | None]:
    ours, tokenizers = Path(str(resources.files("vae_qwen3vl") / "weights")), shipped_tokenizers()
    paths = {
        "tokenizer": tokenizers[DEFAULT],
        FINER: tokenizers[FINER],
        "projector": ours / PROJECTOR_NAME,
        "adapter": ours / LORA_NAME / "adapter_model.safetensors",
    }
    return {name: path if path.is_file() else None for name, path in paths.items()}


def damaged_weights(paths: Iterable[Path]) -> dict[str, str]:
    """Return the given files of weights that can't be read, or differ from what was installed, and why.

    The hash is known where the package was installed from a wheel; the file's own header is always checked, and so
    is the configuration beside the tokenizer's weights.
    """
    from safetensors import SafetensorError, safe_open

    try:
        hashes = {str(f.locate()): f.hash for f in metadata.files(DISTRIBUTION) or () if f.hash is not None}
    except metadata.PackageNotFoundError:
        hashes = {}
    faults = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as tensors:
                names = list(tensors.keys())
            recorded = hashes.get(str(path))
            if not names:
                faults[str(path)] = "it holds no tensors"
            elif recorded is not None and recorded.mode == "sha256":
                digest = base64.urlsafe_b64encode(bytes.fromhex(sha256_of(path))).decode().rstrip("=")
                if digest != recorded.value:
                    faults[str(path)] = "its SHA-256 is not the one it was installed with"
            if path.name == WEIGHTS_NAME:
                VAEConfig.from_json(path.with_name(CONFIG_NAME))
            elif path.parent.name == LORA_NAME:
                json.loads(path.with_name("adapter_config.json").read_text(encoding="utf-8"))
        except (SafetensorError, OSError, ValueError) as error:
            faults[str(path)] = " ".join(str(error).split())
    return faults
