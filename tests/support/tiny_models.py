"""Small real parts for the tests of the language branch: models, a tokenizer, a foreign VAE, shapes.

Plain functions: a process that a test starts uses them too; `tests/vae_qwen3vl/conftest.py` makes fixtures of them.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
VOCABULARY = 400
TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
KINDS = ("qwen2_vl", "qwen3_vl")
SMALL_VAE = {
    "architecture": "original",
    "resolution": 8,
    "model_channels": 16,
    "level_channels": [4, 8],
    "latent_channels": 4,
    "num_blocks": 1,
    "num_head_channels": 8,
    "num_embeddings": 32,
    "field": {"kind": "sdf", "unit": "band", "band": 3.0, "sampling": "center", "resolution": 32},
}
"""Arguments of a tokenizer whose codes are looked up and never decoded well."""


def build_tokenizer():
    """Byte-level BPE with ChatML tokens and template, as Qwen's and SmolLM2's are."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 10,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    words = "Describe this 3D shape in one sentence: a red robot. A chair with four legs. user assistant system"
    backend.train_from_iterator([words] * 4, trainer)
    backend.add_tokens([AddedToken("<tool_call>", special=False)])  # added, yet not special: Qwen has such
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def build_vl(
    kind: str,
    seed: int = 0,
    hidden: int = 48,
    *,
    vocabulary: int = VOCABULARY,
    tokens: dict[str, int] = TOKENS,
    patch_size: int = 4,
) -> nn.Module:
    """A real Qwen2-VL or Qwen3-VL of two layers with random weights."""
    import transformers

    torch.manual_seed(seed)
    text = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    if kind == "qwen2_vl":
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
        vision = {"depth": 1, "embed_dim": 16, "hidden_size": hidden, "num_heads": 2, "mlp_ratio": 2}
        vision["patch_size"] = patch_size
        config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
        model = transformers.Qwen2VLForConditionalGeneration(config)
    else:
        text |= {"head_dim": 12}
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
        vision = {
            "depth": 1,
            "hidden_size": 16,
            "out_hidden_size": hidden,
            "num_heads": 2,
            "intermediate_size": 32,
            "patch_size": patch_size,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        }
        config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
        model = transformers.Qwen3VLForConditionalGeneration(config)
    for parameter in model.parameters():  # larger than the initial 0.02, so that positions matter to the logits
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 2
    return model.eval()


class ForeignVAE(nn.Module):
    """No SparseSDFVQVAE: pools to cells of 8^3 and hashes values to float codes, as the original returns them."""

    def __init__(self, codes: int = 64, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.vq = SimpleNamespace(embeddings=nn.Embedding(codes, width))
        self.weight = nn.Parameter(torch.ones(1))

    def Encode(self, batch: dict[str, Tensor]) -> SimpleNamespace:
        cells = torch.cat([batch["batch_idx"][:, None], batch["sparse_index"] // 8], dim=1)
        coords, inverse = torch.unique(cells, dim=0, return_inverse=True)
        total = torch.zeros(len(coords)).index_add(0, inverse, batch["sparse_sdf"].flatten().abs())
        codes = (total * 997).long() % len(self.vq.embeddings.weight)
        return SimpleNamespace(feats=(codes.float() * self.weight)[:, None], coords=coords.int())

    def Decode(self, encoding_indices: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(feats=encoding_indices.feats, coords=encoding_indices.coords)


def build_batch(points: list[int], side: int = 64) -> dict[str, Tensor]:
    """A batch dict of random voxels, one entry of `points` an object."""
    generator = torch.Generator().manual_seed(3)
    parts = [torch.randint(0, side, (count, 3), generator=generator) for count in points]
    return {
        "sparse_sdf": torch.rand(sum(points), 1, generator=generator) * 2 - 1,
        "sparse_index": torch.cat(parts),
        "batch_idx": torch.repeat_interleave(torch.arange(len(points)), torch.tensor(points)),
    }


def build_codes(points: list[int], width: int = 8, side: int = 12) -> tuple[Tensor, Tensor]:
    """Random features and distinct cells of objects of the given sizes, shuffled."""
    generator = torch.Generator().manual_seed(7)
    rows = []
    for number, count in enumerate(points):
        cells = torch.randperm(side**3, generator=generator)[:count]
        xyz = torch.stack([cells // side**2, cells // side % side, cells % side], dim=1)
        rows.append(torch.cat([torch.full((count, 1), number), xyz], dim=1))
    coords = torch.cat(rows).int()
    order = torch.randperm(len(coords), generator=generator)
    return torch.randn(len(coords), width, generator=generator), coords[order]
