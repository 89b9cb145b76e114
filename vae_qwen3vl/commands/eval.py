"""The program `eval` (`vae_qwen3vl/eval_3d_vl.py`): what a model says about shapes, beside blind controls."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdf_vqvae.utils.programs import add_run_options, print_json
from sdf_vqvae.utils.settings import add_options, flag_of, given
from vae_qwen3vl.candidates.settings import CandidateSettings
from vae_qwen3vl.commands.options import quiet_transformers
from vae_qwen3vl.config import AlignmentConfig, add_alignment_options, given_settings, read_alignment_config
from vae_qwen3vl.evaluation.settings import EvalSettings

if TYPE_CHECKING:
    import torch

    from sdf_vqvae.model.vqvae import SparseSDFVQVAE
    from vae_qwen3vl.evaluation.objects import EvalData
    from vae_qwen3vl.model import Qwen3VLWith3DBranch

ABOUT = """\
What does a trained model say about shapes, and is it more than a model that does not see them would say?

Objects are those of --data_dir (a folder of cached codes or a dataset of fields; the split test, else val, else all,
but nothing that the weights learned from, which the run's objects.json says, unless there is nothing else; --split
train asks for just that), of one batch in --data_path, or, where neither is given, one random shape to try the path.
The model is the run that the config's output_run names (auto, or nothing: the latest one of its settings), rebuilt
from that run's folder alone; or that of --projector_ckpt, with the adapter beside it or in --lora_dir; or, without
any of these, the shipped one.

--output_dir gets generated.txt (a line an object), eval_results.jsonl, eval_summary.json and report.html; with
--save_mesh also recon_mesh_{i}.obj, decoded from the very codes that were described, with scores where the true
shape is at hand. Objects with captions are measured against them, beside blind controls: no 3D, another object's 3D,
shuffled coordinates, one answer for all. Only what is above those comes from the shape."""
EXAMPLES = """\
  python vae_qwen3vl/eval_3d_vl.py --config configs/3d_align_train.yaml --output_dir ./eval_out
  vae-qwen3vl eval --data_dir train_codes --max_eval_samples 0 --output_dir ./eval_out
  vae-qwen3vl eval --data_path one_batch.pt --prompt "Describe this 3D shape in one sentence:"
  vae-qwen3vl eval --save_mesh"""
OUTPUT = "eval_3d_vl_out"
IN_RUN = "eval_out"
_SETTINGS = (
    *("vl_model", "vae_config", "vae_ckpt", "data_dir", "output_run", "prompt"),
    *("max_3d_tokens", "use_3d_pos", "projector_layers", "truncate_mode", "seed", "val_samples"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_alignment_options(parser, only=_SETTINGS)
    model = parser.add_argument_group("the trained model")
    model.add_argument("--projector_ckpt", metavar="FILE", help="trained projector (default: the run's, or shipped)")
    model.add_argument("--lora_dir", metavar="DIR", help="LoRA trained with it; none: without (default: beside it)")
    data = parser.add_argument_group("objects")
    data.add_argument("--data_path", metavar="FILE", help="a .pt batch: sparse_sdf, sparse_index, batch_idx")
    data.add_argument("--split", help="of --data_dir (default: test, else val, else all; never what was trained on)")
    data.add_argument("--max_eval_samples", type=int, default=20, metavar="N", help="the first N; 0 for all (20)")
    add_options(data, EvalSettings, ("questions", "shapes"))
    evaluation = parser.add_argument_group("the evaluation")
    evaluation.add_argument("--output_dir", metavar="DIR", help=f"default: the run's {IN_RUN}/, else {OUTPUT}/")
    add_options(evaluation, EvalSettings, ("max_new_tokens", "batch_size", "measures", "sentence_model", "look_up"))
    evaluation.add_argument("--save_mesh", action="store_true", help="rebuild meshes from the codes, and keep them")
    add_options(evaluation, EvalSettings, ("voxel_resolution", "mc_threshold"))
    add_options(parser.add_argument_group("choosing among several descriptions"), CandidateSettings)
    add_run_options(parser)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which files a model is made of, and where results go."""

    vl_model: str | None
    vae_config: str | None
    vae_ckpt: str | None
    projector: str | None
    lora: str | None
    run: Path | None
    """The run that they are of, where that is known."""
    output: Path


def parts_of(options: argparse.Namespace, config: AlignmentConfig) -> Parts:
    """Return the model's files: flags over the run's folder over the config over what is shipped.

    Raises:
        ValueError: the run does not exist or has not ended.
    """
    from vae_qwen3vl.trained_parts import ARGUMENTS, PROJECTOR_FINAL
    from vae_qwen3vl.training.learned_objects import run_of
    from vae_qwen3vl.training.run_folder import run_to_evaluate
    from vae_qwen3vl.training.starting_model import settled

    told = given_settings(options)
    projector, run, output = options.projector_ckpt, run_of(options.projector_ckpt), options.output_dir
    if projector is None and (config.output_run is not None or options.config is not None):
        # The settings of the file alone: flags of an evaluation say what is evaluated, not what was trained.
        of_file = config if options.config is None else AlignmentConfig.from_file(options.config)
        run = run_to_evaluate(settled(replace(of_file, output_run=config.output_run)))
        projector, output = str(run / PROJECTOR_FINAL), output or str(run / IN_RUN)
    recorded = run is not None and (run / ARGUMENTS).is_file()
    trained = AlignmentConfig.from_file(run / ARGUMENTS) if run is not None and recorded else config
    model = {key: told.get(key, getattr(trained, key)) for key in ("vl_model", "vae_config", "vae_ckpt")}
    return Parts(**model, projector=projector, lora=options.lora_dir, run=run, output=Path(output or OUTPUT))


def work(options: argparse.Namespace) -> int:
    """Evaluate."""
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.utils.runtime import resolve_device
    from vae_qwen3vl.describer import load_describer
    from vae_qwen3vl.evaluation.run import evaluate
    from vae_qwen3vl.evaluation.tables import summary_text
    from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D

    config = read_alignment_config(options)
    parts = parts_of(options, config)
    quiet_transformers(options.verbose)
    device = resolve_device(options.device)
    data, vae = open_data(options, config, parts, device)
    model = load_describer(vae, parts.vl_model, parts.projector, parts.lora, device=device, vae_hash=data.vae_hash)
    told = given_settings(options)
    override(model, told)
    prompt = told.get("prompt") or model.prompt or config.prompt or DEFAULT_PROMPT
    processor = Processor3D.from_pretrained(model.model_name_or_path)
    settings = EvalSettings(
        prompt=prompt,
        seed=config.seed,
        data=options.data_path or config.data_dir or "a random shape",
        run=parts.run,
        choice=CandidateSettings(**given(options, CandidateSettings)),
        **given(options, EvalSettings),
    )
    if options.save_mesh and vae is None:
        vae = load_vae_from_config(parts.vae_config, parts.vae_ckpt, device)
    evaluation = evaluate(model, processor, data, settings, parts.output, vae=vae if options.save_mesh else None)
    if options.json:
        print_json(evaluation.summary, indent=None)
    else:
        print(summary_text(evaluation.records, evaluation.summary, parts.output))
    return 0


def open_data(
    options: argparse.Namespace, config: AlignmentConfig, parts: Parts, device: torch.device
) -> tuple[EvalData, SparseSDFVQVAE | None]:
    """Return the objects, and the tokenizer if one was needed for them.

    Raises:
        ValueError: there is no such data, or it is of another tokenizer than the one that is named.
    """
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from vae_qwen3vl.evaluation.objects import from_batch, from_codes, from_fields, random_shape
    from vae_qwen3vl.training.learned_objects import learned_from
    from vae_qwen3vl.training.run_data import cached_codes, check_data

    if options.data_path is None and config.data_dir is not None:
        check_data(config)
        folder = cached_codes(config)
        chosen: dict[str, Any] = {
            "split": options.split,
            "most": max(0, options.max_eval_samples),
            "learned": learned_from(_trained_parts(parts), config.val_samples),
        }
        if folder is not None:
            return from_codes(folder, **chosen), None
        vae = load_vae_from_config(parts.vae_config, parts.vae_ckpt, device)
        return from_fields(config.data_dir, vae, **chosen), vae
    vae = load_vae_from_config(parts.vae_config, parts.vae_ckpt, device)
    if options.data_path is not None:
        return from_batch(options.data_path, vae), vae
    print("no --data_dir and no --data_path: one random shape, which no caption fits", file=sys.stderr)
    return random_shape(vae, seed=config.seed), vae


def _trained_parts(parts: Parts) -> list[str | None]:
    """Return the files that say what was learned from; where there are none, the shipped ones do."""
    from vae_qwen3vl.trained_parts import NO_LORA

    lora = None if parts.lora == NO_LORA else parts.lora
    return [part for part in (parts.projector, lora) if part is not None] or [None]


def override(model: Qwen3VLWith3DBranch, told: Mapping[str, Any]) -> None:
    """Take over what the command line says of the 3D branch.

    Raises:
        ValueError: it contradicts the projector's file.
    """
    fixed = {"use_3d_pos": model.projector.use_3d_pos, "projector_layers": model.projector.num_layers}
    for key, value in fixed.items():
        if told.get(key, value) != value:
            raise ValueError(
                f"{flag_of(key, told[key])}: the projector was trained with {flag_of(key, value)}; leave it out"
            )
    model.max_3d_tokens = told.get("max_3d_tokens", model.max_3d_tokens)
    model.truncate_mode = told.get("truncate_mode", model.truncate_mode)
