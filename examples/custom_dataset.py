"""Your own shapes and words for training, both ways: codebook vectors made beforehand (A), or fields (B).

python examples/custom_dataset.py

Takes the example meshes with captions of your own, and does two training steps of a new projector each way, with the
shipped tokenizer and the default language model (`--vl_model` takes another). Everything runs on the CPU as well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from sdf_vqvae.codes.pipeline import voxelize_for
from sdf_vqvae.fields.sparse_sdf import collate_sparse_sdf
from sdf_vqvae.utils.programs import run_program
from vae_qwen3vl import (
    Processor3D,
    Qwen3VLWith3DBranch,
    collate_3d_text,
    collate_sdf_caption,
    extract_3d_latent,
    load_vae_from_config,
)
from vae_qwen3vl.commands.options import quiet_transformers
from vae_qwen3vl.language.default_model import resolve_vl_model

HERE = Path(__file__).parent
PROMPT = "What is this?"
WORDS = {"chair.glb": "It is a chair.", "plane.glb": "It is an airplane."}


class WayA(Dataset[dict[str, torch.Tensor]]):
    """Codebook vectors, made once; each item is a dictionary of five tensors."""

    def __init__(self, vae: Any, processor: Processor3D) -> None:
        self.items = []
        for file, answer in WORDS.items():
            feats, coords = extract_3d_latent(voxelize_for(vae, HERE / file).to_batch(), vae)  # [M, D], [M, 4]
            text = processor(PROMPT, answer)  # input_ids, attention_mask, labels [1, S]
            words = {key: value[0] for key, value in text.items()}
            self.items.append({"feats_3d": feats.cpu(), "coords_3d": coords.cpu(), **words})

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Return one object and its text."""
        return self.items[number]


class WayB(Dataset[dict[str, Any]]):
    """Distance fields and captions; the tokenizer encodes within the step."""

    def __init__(self, vae: Any) -> None:
        self.fields = [voxelize_for(vae, HERE / file).to("cpu") for file in WORDS]
        self.captions = list(WORDS.values())

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return one field and its caption."""
        return {"inputs_3d": collate_sparse_sdf([self.fields[number]]), "caption": self.captions[number]}


def train(model: Qwen3VLWith3DBranch, loader: DataLoader[Any], name: str) -> None:
    """Do two passes over the data with the projector alone, and print the losses."""
    optimizer = torch.optim.AdamW(model.projector.parameters(), lr=2e-4)
    losses = []
    for _ in range(2):
        for batch in loader:
            loss = model.forward_with_3d(**_moved(batch, model.device)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(f"{loss.item():.3f}")
    print(f"way {name}: losses {', '.join(losses)}")


def _moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: _moved(v, device) if isinstance(v, Mapping) else v.to(device) for k, v in batch.items()}


def main() -> int:
    """Train both ways, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vl_model", help="Qwen2-VL or Qwen3-VL: a folder or a Hub id (default: the small default)")
    return run_program("custom_dataset", work, parser.parse_args())


def work(options: argparse.Namespace) -> int:
    """Train both ways."""
    quiet_transformers()
    torch.manual_seed(0)
    vae = load_vae_from_config()
    vl = str(resolve_vl_model(options.vl_model))
    processor = Processor3D.from_pretrained(vl)
    model = Qwen3VLWith3DBranch(vl, vae_model=vae, max_3d_tokens=128, use_3d_pos=True, projector_num_layers=2)
    model.to(vae.device)
    for parameter in model.vl_model.parameters():
        parameter.requires_grad_(False)
    width = model.projector.latent_dim
    loader_a = DataLoader(WayA(vae, processor), 2, collate_fn=lambda items: collate_3d_text(items, latent_dim=width))
    train(model, loader_a, "A")
    loader_b = DataLoader(WayB(vae), 2, collate_fn=lambda items: collate_sdf_caption(items, processor, PROMPT))
    train(model, loader_b, "B")
    return 0


if __name__ == "__main__":
    sys.exit(main())
