"""The program `smoke-test` (`vae_qwen3vl/run_smoke_test.py`): whether the whole path works on this machine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sdf_vqvae.commands.options import add_vae_options
from sdf_vqvae.config.architecture import VAEConfig, config_file
from sdf_vqvae.utils.programs import add_run_options
from vae_qwen3vl.commands.options import quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor

    from sdf_vqvae.sparse.tensor import SparseTensor

ABOUT = """\
End-to-end check: a 3D field through the VAE into a vision-language model, and back out through Decode.

`--quick` needs no network: a tiny Qwen2-VL with random weights, built from its config, and the real VAE code.
Without it the language model is a real one (the embedded default unless `--vl_model` says otherwise). Ends with
`Smoke test OK.`"""
EXAMPLES = """\
  python vae_qwen3vl/run_smoke_test.py --vae_config configs/vae/sdf_vqvae_stage1.json --quick
  vae-qwen3vl smoke-test --vae_config configs/vae/sdf_vqvae_stage1.json [--vae_ckpt FILE]"""
DEFAULT_CONFIG = "configs/vae/sdf_vqvae_stage1.json"
_VOCABULARY = 512
_TEXT_LENGTH = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_vae_options(parser, DEFAULT_CONFIG)
    parser.add_argument(
        "--vl_model",
        metavar="NAME",
        help="a folder, a Hub id, or smollm2-135m (the default); not used with --quick",
    )
    parser.add_argument("--max_3d_tokens", type=int, default=512, metavar="N", help="3D tokens an object may have")
    parser.add_argument("--quick", action="store_true", help="no network: a tiny random Qwen2-VL")
    add_run_options(parser, json_output=False)


class SmokeTestFailedError(AssertionError):
    """A promise of the path does not hold on this machine."""


def check(promise: str, holds: bool | Tensor) -> None:
    """Print a promise that holds; raise for one that does not."""
    if not bool(holds):
        raise SmokeTestFailedError(f"does not hold: {promise}")
    print(f"  ok  {promise}")


def tiny_vl_model() -> Any:
    """Return a Qwen2-VL of two layers with random weights (seed 0)."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {
        "vocab_size": _VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    markers = dict(
        zip(
            ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
            range(1, 5),
            strict=True,
        )
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **markers))
    return model.eval()


def work(options: argparse.Namespace) -> int:
    """Check, and print what holds."""
    try:
        run_checks(options)
    except SmokeTestFailedError as error:
        print(f"Smoke test failed: {error}")
        return 1
    print("Smoke test OK.")
    return 0


def run_checks(options: argparse.Namespace) -> None:
    """Build VAE and model, and check every promise of the path on them."""
    from sdf_vqvae.fields.balls import sphere_batch
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.utils.runtime import resolve_device
    from vae_qwen3vl.language.default_model import resolve_vl_model
    from vae_qwen3vl.model import Qwen3VLWith3DBranch

    quiet_transformers(options.verbose)
    device = resolve_device(options.device)
    vae_config = config_file(options.vae_config)
    config = VAEConfig.from_json(vae_config)  # a wrong path is said before any model is loaded
    vl_model = None if options.quick else resolve_vl_model(options.vl_model)
    weights = options.vae_ckpt or "random weights, since there is no --vae_ckpt"
    print(f"VAE: {vae_config}, {weights}")
    # A checkpoint without a codebook (Direct3D-S2's) runs too: the loader warns that its codes mean nothing.
    vae = load_vae_from_config(vae_config, options.vae_ckpt, device, codebook_required=False)
    print(f"language model: {vl_model or 'a tiny Qwen2-VL with random weights (--quick)'}")
    model = Qwen3VLWith3DBranch(
        str(vl_model or "tiny random Qwen2-VL"),
        vae_model=vae,
        max_3d_tokens=options.max_3d_tokens,
        use_3d_pos=True,
        use_vl_model=tiny_vl_model() if options.quick else None,
    )
    model.to(device).eval()
    batch = {name: value.to(device) for name, value in sphere_batch(config.field).items()}
    print(f"object: a sphere of {len(batch['sparse_sdf'])} voxels on a {config.data_resolution}^3 grid")
    codes, feats = check_codes(model, batch, config)
    check_forward(model, batch, codes, feats)
    check_embeds(model, batch, codes, options.max_3d_tokens)
    check_decode(model, codes, config)
    if not options.quick:
        check_words(model, feats, codes)


def check_codes(model: Any, batch: dict[str, Tensor], config: VAEConfig) -> tuple[SparseTensor, Tensor]:
    """Encode the object; return its codes and codebook vectors."""
    import torch

    from vae_qwen3vl.vae_latent_extractor import extract_3d_latent, extract_3d_latent_and_indices

    print("encoding")
    feats, coords, codes = extract_3d_latent_and_indices(batch, model.vae_model)
    flat = codes.feats[:, 0].long()
    check(f"{len(flat)} codes lie in the codebook", (flat >= 0).all() & (flat < config.num_embeddings).all())
    check("codes stand on the latent grid", (coords[:, 1:] >= 0).all() & (coords[:, 1:] < config.resolution).all())
    check("feats are the codebook vectors of the codes", torch.equal(feats, model.vae_model.vq.embeddings(flat)))
    again = extract_3d_latent(batch, model.vae_model)
    check("encoding again gives the same", torch.equal(again[0], feats) and torch.equal(again[1], coords))
    return codes, feats


def check_forward(model: Any, batch: dict[str, Tensor], codes: SparseTensor, feats: Tensor) -> None:
    """Run both usages of `forward_with_3d` and one backward pass."""
    import torch

    from vae_qwen3vl.layout import PLACEHOLDER_3D

    print("forward_with_3d")
    device = feats.device
    generator = torch.Generator().manual_seed(0)
    tokens_of_text = min(_VOCABULARY, len(model.vl_model.get_input_embeddings().weight))
    ids = torch.randint(20, tokens_of_text, (1, _TEXT_LENGTH), generator=generator).to(device)
    labels = ids.clone()
    labels[:, : _TEXT_LENGTH // 2] = -100
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    raw = model.forward_with_3d(**text, inputs_3d=batch)
    held = raw["encoding_indices_3d"]
    check(
        "inputs_3d: encoding_indices_3d are the object's codes",
        torch.equal(held.feats, codes.feats) and torch.equal(held.coords, codes.coords),
    )
    tokens = int(model.count_3d_tokens(feats, codes.coords)[0])
    check(
        f"logits cover {tokens} positions of the object and {_TEXT_LENGTH} of text",
        raw.logits.shape[:2] == (1, tokens + _TEXT_LENGTH),
    )
    check("logits and loss are finite", torch.isfinite(raw.logits).all() & torch.isfinite(raw.loss))
    given = model.forward_with_3d(**text, feats_3d=feats, coords_3d=codes.coords)
    check("feats_3d, coords_3d: the same logits", torch.equal(raw.logits, given.logits))
    other = model.forward_with_3d(**text, feats_3d=feats.flip(0) + 1, coords_3d=codes.coords)
    check("another object: other logits", not torch.allclose(raw.logits, other.logits))
    placed = torch.cat([ids[:, :4], torch.full_like(ids[:, :1], PLACEHOLDER_3D), ids[:, 4:]], dim=1)
    inside = model.forward_with_3d(input_ids=placed, inputs_3d=batch)
    check("a placeholder puts the object inside the text", inside.logits.shape == raw.logits.shape)
    raw.loss.backward()
    learns = [p for p in model.projector.parameters() if p.grad is not None and bool((p.grad != 0).any())]
    frozen = all(p.grad is None for p in (*model.vae_model.parameters(), *model.vl_model.parameters()))
    check("gradients reach the projector, not the VAE or the language model", len(learns) > 0 and frozen)
    model.zero_grad(set_to_none=True)


def check_embeds(model: Any, batch: dict[str, Tensor], codes: SparseTensor, max_3d_tokens: int) -> None:
    """Get embeddings and codes without a pass through the language model."""
    import torch

    print("get_3d_embeds_and_encoding_indices")
    with torch.no_grad():
        embeds, mask, indices = model.get_3d_embeds_and_encoding_indices(batch)
    width = model.vl_model.get_input_embeddings().weight.shape[1]
    check(f"embeddings {list(embeds.shape)} fit the language model", embeds.shape == (*mask.shape, width))
    check("the same codes", torch.equal(indices.feats, codes.feats))
    check(
        f"{int(mask.sum())} 3D tokens for {len(codes)} codes",
        0 < int(mask.sum()) <= (max_3d_tokens if max_3d_tokens > 0 else len(codes)),
    )


def check_decode(model: Any, codes: SparseTensor, config: VAEConfig) -> None:
    """Rebuild the field from the codes."""
    import torch

    print("Decode")
    recon = model.vae_model.Decode(codes)
    check(f"{len(recon)} voxels have one finite value each", torch.isfinite(recon.feats).all())
    check("one value a voxel", recon.feats.shape == (len(recon.coords), 1))
    cells = torch.unique(torch.cat([recon.coords[:, :1], recon.coords[:, 1:] >> config.levels], dim=1), dim=0)
    inside = {tuple(row) for row in cells.tolist()} <= {tuple(row) for row in codes.coords.tolist()}
    check(f"all of them lie in the codes' cells of the {config.data_resolution}^3 grid", inside)


def check_words(model: Any, feats: Tensor, codes: SparseTensor) -> None:
    """Let a real language model say something; with an untrained projector the words mean nothing."""
    print("describe")
    (said,) = model.describe(feats_3d=feats, coords_3d=codes.coords, max_new_tokens=12)
    check(f"the language model answers (untrained projector: {said!r})", isinstance(said, str))
