"""The whole path on one mesh: voxels, codes, words about it, the mesh rebuilt, a picture of both.

The same public calls as in the README, with the cost of each stage written down. Prints nothing.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh

from sdf_vqvae.codes.pipeline import decode_codes, encode_field, field_for, surface_of, up_for
from sdf_vqvae.geometry.mesh import load_mesh, write_mesh
from sdf_vqvae.geometry.metrics.scores import compare_meshes
from sdf_vqvae.geometry.picture import save_comparison
from sdf_vqvae.geometry.up import stand_up
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.progress import waiting
from sdf_vqvae.utils.runtime import StageCost, Stopwatch, resolve_device
from vae_qwen3vl.describer import describe, load_describer


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What came out, and what it cost."""

    mesh: str
    faces: int
    watertight: bool
    up: str
    """The axis of the mesh that points up."""
    up_from: str
    """Where that is known from."""
    sign_method: str
    resolution: int
    voxels: int
    codes: int
    distinct_codes: int
    tokens_3d: int
    prompt: str
    description: str
    rebuilt_faces: int
    chamfer_l1: float
    """Mean distance between the surfaces, longest side 1."""
    fscore: float
    """F-score at 0.01 of the longest side."""
    device: str
    files: dict[str, str]
    stages: list[StageCost]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


def run_demo(
    mesh_path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    vae_config: str | os.PathLike[str] | None = None,
    vae_ckpt: str | os.PathLike[str] | None = None,
    vl_model: str | os.PathLike[str] | None = None,
    projector: str | os.PathLike[str] | None = None,
    lora: str | os.PathLike[str] | None = None,
    prompt: str | None = None,
    up: str | None = None,
    device: str | torch.device | None = None,
) -> DemoResult:
    """Take one mesh file through the whole path and leave the results in a folder.

    The folder gets `codes.safetensors`, `reconstruction.glb` (source units), `comparison.png` and `result.json`.

    Args:
        mesh_path: GLB, glTF, OBJ, PLY, STL or OFF.
        out_dir: made if it does not exist; files of an earlier run are replaced.
        vae_config: see `load_vae_from_config`.
        vae_ckpt: see `load_vae_from_config`.
        vl_model: see `load_describer`.
        projector: see `load_describer`.
        lora: see `load_describer`.
        prompt: the question; None asks what the projector was trained with.
        up: the axis of the mesh that points up, or `auto`; None takes what `up_of` says.
        device: CUDA where present by default.

    Raises:
        ValueError: the mesh or a model cannot be used.
    """
    target, out = resolve_device(device), Path(out_dir)
    with waiting(f"reading {mesh_path}"):  # before the models: a wrong file name should not cost a minute
        source = load_mesh(mesh_path)
        stands = up_for(mesh_path, source, up)
    watch = Stopwatch(target, stages=7)
    with watch("load models"):
        vae = load_vae_from_config(vae_config, vae_ckpt, target)
        model = load_describer(vae, vl_model, projector, lora, device=target, plain_chats=False)
    with watch("voxelize"):
        field = field_for(vae, source, up=stands)
    with watch("encode"):
        codes = encode_field(vae, field)
    with watch("describe"):
        words = describe(model, codes, prompt)
    with watch("decode"):
        decoded = decode_codes(vae, codes)
    with watch("surface"):
        rebuilt = surface_of(vae, decoded, codes)
    out.mkdir(parents=True, exist_ok=True)
    files = {
        name: str(out / file)
        for name, file in (
            ("codes", "codes.safetensors"),
            ("mesh", "reconstruction.glb"),
            ("picture", "comparison.png"),
            ("result", "result.json"),
        )
    }
    codes.save(files["codes"])
    write_mesh(files["mesh"], rebuilt, up=stands.axis)
    with watch("picture"):
        panels = [("input", source), ("rebuilt from its codes", rebuilt)]
        upright = [(title, _standing(mesh, stands.axis)) for title, mesh in panels]
        save_comparison(files["picture"], upright, words.text)
    with waiting("comparing both meshes"):
        score = compare_meshes(rebuilt, source, samples=20_000)
    result = DemoResult(
        mesh=str(mesh_path),
        faces=len(source.faces),
        watertight=field.watertight,
        up=stands.axis,
        up_from=stands.known_from,
        sign_method=field.sign_method,
        resolution=vae.config.data_resolution,
        voxels=len(field.sdf),
        codes=codes.count,
        distinct_codes=len(torch.unique(codes.first)),
        tokens_3d=words.tokens_3d,
        prompt=words.prompt,
        description=words.text,
        rebuilt_faces=len(rebuilt.faces),
        chamfer_l1=float(f"{score.chamfer_l1:.4g}"),  # of 20,000 samples
        fscore=round(score.fscore[0.01], 4),
        device=str(target),
        files=files,
        stages=watch.costs,
    )
    write_json(files["result"], result.to_dict(), indent=2)
    return result


def _standing(mesh: trimesh.Trimesh, up: str) -> trimesh.Trimesh:
    """Return a mesh as it stands, y up, for a picture."""
    return trimesh.Trimesh(stand_up(np.asarray(mesh.vertices), up), mesh.faces, process=False)
