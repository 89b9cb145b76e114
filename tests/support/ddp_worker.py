"""One process of a data-parallel training step on the CPU; `test_distributed.py` starts two and compares.

python ddp_worker.py RANK WORLD RENDEZVOUS_FILE OUT_FILE
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import tiny_models
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D

STEPS = 2
PROMPTS = ["hi", "a longer prompt here", "what?", "and this?"]
EVEN = ["a red robot.", "a red robot.", "a red robot.", "a red robot."]
UNEVEN = ["no", "a red robot.", "a chair with four legs.", "a"]
CASES = {
    "codes": (EVEN, 4),
    "raw fields": (EVEN, 4),
    "answers of unequal length": (UNEVEN, 4),
    "text alone on one rank": (EVEN, 2),
}
MODELS = {"qwen2_vl": ("qwen2_vl", False), "qwen3_vl with LoRA": ("qwen3_vl", True)}


def build(name: str, seed: int) -> Qwen3VLWith3DBranch:
    """Build a model whose trainable numbers follow the seed."""
    kind, lora = MODELS[name]
    vl_model = tiny_models.build_vl(kind)
    torch.manual_seed(seed)
    branch = Qwen3VLWith3DBranch(
        vae_model=tiny_models.ForeignVAE(),
        use_vl_model=vl_model,
        projector_num_layers=2,
        merge=2,
        use_3d_pos=True,
        max_3d_tokens=6,
    )
    torch.manual_seed(seed)
    if lora:
        branch.add_lora(r=2, dropout=0.0)
    for parameter in branch.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return branch.train()


def inputs_of(case: str, first: int, last: int, share: float) -> dict[str, Any]:
    """Return the model's inputs for samples first..last-1; `share` is the part of the batch's ranks they are."""
    answers, with_shape = CASES[case]
    processor = Processor3D(tiny_models.build_tokenizer())
    chats = [
        [{"role": "user", "content": [*[{"type": "3d"}] * (at < with_shape), {"type": "text", "text": PROMPTS[at]}]}]
        for at in range(4)
    ]
    inputs: dict[str, Any] = processor(chats[first:last], answers[first:last], objects=0)
    total = int((processor(chats, answers, objects=0)["labels"] != -100).sum())
    inputs["num_items_in_batch"] = torch.tensor(total * share)
    sizes = [60, 5, 33, 20]
    if case == "raw fields":
        batch = tiny_models.build_batch(sizes)
        mine = (batch["batch_idx"] >= first) & (batch["batch_idx"] < last)
        inputs["inputs_3d"] = {name: value[mine] for name, value in batch.items()}
        inputs["inputs_3d"]["batch_idx"] -= first
    elif first < with_shape:
        feats, coords = tiny_models.build_codes(sizes)
        mine = (coords[:, 0] >= first) & (coords[:, 0] < min(last, with_shape))
        inputs["feats_3d"], inputs["coords_3d"] = feats[mine], coords[mine] - torch.tensor([first, 0, 0, 0])
    return inputs


def train(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Take a few steps and return the gradients of each."""
    trained = {name.removeprefix("module."): value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.05)
    grads = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        model(**inputs)["loss"].backward()
        grads |= {f"{step}/{name}": value.grad.clone() for name, value in trained.items()}
        optimizer.step()
    return grads


def main() -> None:
    """Run every case through DistributedDataParallel and write the gradients."""
    rank, world = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{sys.argv[3]}", rank=rank, world_size=world)
    results = {}
    for name in MODELS:
        for case in CASES:
            branch = build(name, seed=5 + rank)  # rank 0 gives its numbers to the others
            model = torch.nn.parallel.DistributedDataParallel(branch, find_unused_parameters=False)
            inputs = inputs_of(case, rank * 4 // world, (rank + 1) * 4 // world, 1 / world)
            with torch.no_grad():
                inside = getattr(model, "module", model).forward_with_3d(**inputs)["loss"]
                torch.testing.assert_close(inside, model(**inputs)["loss"])
            results |= {f"{name}/{case}/{key}": value for key, value in train(model, inputs).items()}
            alone = build(name, seed=5)
            getattr(alone, "module", alone).forward_with_3d(**inputs)["loss"].backward()
            results |= {
                f"{name}/{case}/alone/{key}": value.grad
                for key, value in alone.named_parameters()
                if value.requires_grad
            }
    save_file(results, sys.argv[4])
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
