"""What standing the wrong way costs words, and whether the language model itself can tell which way is up.

    python benchmarks/quality/upright_words.py encode PACK --split val -o outputs_upright/turned   # a minute on a GPU
    python benchmarks/quality/upright_words.py ask outputs_upright/turned -o outputs_upright/answers.json
    python benchmarks/quality/upright_words.py measure PACK outputs_upright/answers.json

The first encodes every mesh of a split in six ways of standing: as it is (it stands along y), and as if another axis
were up; the folder of codes calls them splits `y`, `z`, `-z` and so on. The second asks the model about each,
greedily, and keeps its answers with how sure it is of them (mean log-likelihood of an answer's words).

The third prints how often the way of standing that the model is surest of is the right one, beside the network of
`sdf_vqvae.geometry.upright`; and what the words are worth (Sentence-BERT to the nearest caption, of 100) of meshes
that stand along z: if nobody turns them (the split `-z`), if the network turns them, and if they are turned rightly.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sdf_vqvae.codes.folder import CodeFolder, CodeFolderWriter
from sdf_vqvae.codes.pipeline import voxelize_many_for
from sdf_vqvae.data.mesh_pack import MeshPack
from sdf_vqvae.data.tables import ID_COLUMN, METADATA, write_table
from sdf_vqvae.fields.sparse_sdf import SparseSDF, collate_sparse_sdf
from sdf_vqvae.geometry.upright import UP_AXES, guess_up, turns_to_upright, usual_up
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device
from vae_qwen3vl.describer import load_describer
from vae_qwen3vl.evaluation.objects import from_codes
from vae_qwen3vl.language.sentence_encoder import load_sentence_encoder, sentence_similarities
from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D

STANDS_ALONG = "y"


def turned(vertices: np.ndarray, up: str) -> np.ndarray:
    """Return vertices `[V, 3]` turned as if `up` were up; those of `y` as they are."""
    if up == STANDS_ALONG:
        return vertices
    order, flipped = turns_to_upright(up)[0]
    signs = [-1 if axis in flipped else 1 for axis in range(3)]
    return vertices[:, order] * signs


def encode(options: argparse.Namespace) -> None:
    """Write the folder of codes."""
    vae = load_vae_from_config(device=resolve_device(options.device))
    pack = MeshPack(options.pack)
    entries = pack.select(options.split)[: options.max_samples]
    writer = CodeFolderWriter(options.output, vae)
    rows = []
    for entry in tqdm(entries, unit="mesh"):
        mesh = pack.mesh(entry)
        stands = []
        for up in UP_AXES:
            other = mesh.copy()
            other.vertices = turned(np.asarray(mesh.vertices), up)
            stands.append(other)
        made = voxelize_many_for(vae, stands)
        for up, field in zip(UP_AXES, made, strict=True):
            if isinstance(field, str):
                print(f"{entry.id}, up {up}: {field}", file=sys.stderr)
        fields = {up: field for up, field in zip(UP_AXES, made, strict=True) if isinstance(field, SparseSDF)}
        if not fields:
            continue
        with torch.no_grad():
            codes = vae.Encode(collate_sparse_sdf(list(fields.values())))
        record = entry.record
        for number, up in enumerate(fields):
            own = codes.coords[:, 0] == number
            values, coords = codes.feats[own, 0], codes.coords[own, 1:]
            name = f"{entry.offset}.{up}"
            writer.add(name, values.to("cpu", torch.int32), coords.to("cpu", torch.int16))
            rows.append(
                {ID_COLUMN: name, "split": up, "object": str(entry.offset), "source": entry.source,
                 "captions": json.dumps(record.get("captions") or [record["name"]], ensure_ascii=False)}
            )  # fmt: skip
    writer.flush()
    write_table(options.output / METADATA, rows)


def ask(options: argparse.Namespace) -> None:
    """Write the model's answers: id of the object -> way of standing -> what is said, and how surely."""
    folder = CodeFolder(options.codes)
    model = load_describer(None, vae_hash=folder.manifest.vae_hash, device=options.device)
    processor = Processor3D.from_pretrained(model.model_name_or_path)
    prompt = model.prompt or DEFAULT_PROMPT
    device = next(model.parameters()).device
    answers: dict[str, dict[str, Any]] = {}
    for up in UP_AXES:
        data = from_codes(folder, split=up, most=options.max_samples or 0)
        for start in tqdm(range(0, len(data.objects), options.batch_size), desc=f"up {up}", unit="batch"):
            part = data.objects[start : start + options.batch_size]
            feats, coords = data.batch(part)
            asked = processor([prompt] * len(part), padding_side="left")
            with torch.no_grad():
                said = model.generate(
                    **{key: value.to(device) for key, value in asked.items()},
                    feats_3d=feats.to(device), coords_3d=coords.to(device),
                    max_new_tokens=options.max_new_tokens, do_sample=False,
                    output_logits=True, return_dict_in_generate=True,
                )  # fmt: skip
            words = said.sequences[:, -len(said.logits) :]
            logs = torch.stack([step.float().log_softmax(-1) for step in said.logits], 1)
            own = logs.gather(2, words[..., None])[..., 0]
            ended = words == processor.tokenizer.eos_token_id
            spoken = (ended.cumsum(1) - ended.int()) == 0  # the end itself counts
            means = ((own * spoken).sum(1) / spoken.sum(1)).tolist()
            texts = processor.tokenizer.batch_decode(words, skip_special_tokens=True)
            for one, text, value in zip(part, texts, means, strict=True):
                answers.setdefault(one.row["object"], {})[up] = {"text": text.strip(), "mean_log": value}
    write_json(options.output, answers, indent=1)


def measure(options: argparse.Namespace) -> None:
    """Print and write what the answers say."""
    answers = json.loads(options.answers.read_text(encoding="utf-8"))
    pack = MeshPack(options.pack)
    entries = [e for e in pack.select(options.split) if set(answers.get(str(e.offset), ())) == set(UP_AXES)]
    own = [answers[str(e.offset)] for e in entries]
    captions = [e.record.get("captions") or [e.record["name"]] for e in entries]
    network = [guess_up(pack.mesh(e)).up for e in tqdm(entries, unit="mesh")]
    weighed = []
    for entry in tqdm(entries, unit="mesh"):
        mesh = pack.mesh(entry)
        mesh.vertices = turned(np.asarray(mesh.vertices), "-z")  # now it stands along z
        weighed.append(usual_up(mesh).up)
    sure = np.array([[one[up]["mean_log"] for up in UP_AXES] for one in own])
    right = UP_AXES.index(STANDS_ALONG)
    pairs = np.stack([sure[:, right] > sure[:, UP_AXES.index(other)] for other in ("z", "-z")]).mean()
    encoder = load_sentence_encoder()
    untouched, upright = [one["-z"]["text"] for one in own], [one["y"]["text"] for one in own]
    rows = {
        "as they are": untouched,
        "turned by the network": [
            y if up == "z" else z for up, y, z in zip(weighed, upright, untouched, strict=True)
        ],
        "turned rightly": upright,
    }
    scores = {row: sentence_similarities(encoder, texts, captions) for row, texts in rows.items()}
    result: dict[str, Any] = {
        "objects": len(entries),
        "split": options.split,
        "the language model": {"six": float((sure.argmax(1) == right).mean()), "y or z": float(pairs)},
        "the network": {"six": float(np.mean([up == STANDS_ALONG for up in network]))},
        "meshes along z": {
            "turned by the network": float(np.mean([up == "z" for up in weighed])),
            "sentence_bert": {row: round(100 * float(np.mean(values)), 2) for row, values in scores.items()},
        },
    }
    print(json.dumps(result, indent=1))
    write_run(options, result)


def make_parser() -> argparse.ArgumentParser:
    """Return the program's parser."""
    parser = measuring_parser(__doc__, __file__)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("encode")
    first.add_argument("pack", type=Path)
    first.add_argument("--split", default="val")
    first.add_argument("-o", "--output", type=Path, required=True)
    first.set_defaults(work=encode)
    second = commands.add_parser("ask")
    second.add_argument("codes", type=Path)
    second.add_argument("-o", "--output", type=Path, required=True)
    second.add_argument("--batch_size", type=int, default=16)
    second.add_argument("--max_new_tokens", type=int, default=24)
    second.set_defaults(work=ask)
    third = commands.add_parser("measure")
    third.add_argument("pack", type=Path)
    third.add_argument("answers", type=Path)
    third.add_argument("--split", default="val")
    third.set_defaults(work=measure)
    for command in (first, second):
        command.add_argument("--max_samples", type=int)
        command.add_argument("--device")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = make_parser().parse_args(argv)
    options.work(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
