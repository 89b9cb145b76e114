"""Import every module of the installed wheel, from the folder given, and look for the files it must bring."""

import importlib
import pkgutil
import sys
from importlib import resources
from pathlib import Path

site = Path(sys.argv[1]).resolve()
count = 0
for name in ("sdf_vqvae", "dataset_toolkits", "vae_qwen3vl"):
    package = importlib.import_module(name)
    home = Path(package.__file__).resolve()
    assert site in home.parents, f"{name} came from {home}, not from the wheel in {site}"
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        if not module.name.endswith(("__main__", "_triton")):  # kernels: loaded on CUDA only
            importlib.import_module(module.name)
            count += 1
weights = resources.files("sdf_vqvae") / "weights"
assert (weights / "model.safetensors").is_file(), "the wheel ships no tokenizer weights"
assert (weights / "config.json").is_file(), "the wheel ships no tokenizer config"
configs = resources.files("sdf_vqvae") / "config" / "documents"
assert (configs / "sdf_vqvae_stage1.json").is_file(), "the wheel brings no configs"
print(f"{count} modules imported from the wheel in {Path.cwd().name}/")
