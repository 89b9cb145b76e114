"""What standing the wrong way costs words, and whether the language model itself can tell which way is up.

    python benchmarks/quality/upright_words.py PACK --work outputs_upright     # a minute on a GPU, then some

Every mesh of a split is encoded in six ways of standing: as it is (it stands along y), and as if another axis were
up; the folder of codes, WORK/turned, calls them splits `y`, `z`, `-z` and so on. The model is asked about each,
greedily; WORK/answers.json has its answers with how sure it is of them (mean log-likelihood of an answer's words).
What is there of both is not made again.

Printed is how often the way of standing that the model is surest of is the right one, beside the network of
`sdf_vqvae.geometry.upright_network`; and what the words are worth (Sentence-BERT to the nearest caption, of 100) of
meshes that stand along z: if nobody turns them (the split `-z`), if the network turns them, and if they are turned
rightly.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sdf_vqvae.codes.folder import CodeFolder, CodeFolderWriter
from sdf_vqvae.codes.pipeline import voxelize_many_for
from sdf_vqvae.data.mesh_pack import MeshPack, PackEntry
from sdf_vqvae.data.tables import ID_COLUMN, METADATA, write_table
from sdf_vqvae.fields.sparse_sdf import SparseSDF, collate_sparse_sdf
from sdf_vqvae.geometry.upright_network import UP_AXES, guess_up, turns_to_upright, usual_up
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


def encode(options: argparse.Namespace, folder: Path) -> None:
    """Write the folder of codes."""
    vae = load_vae_from_config(device=resolve_device(options.device))
    pack = MeshPack(options.pack)
    writer = CodeFolderWriter(folder, vae)
    rows = []
    for entry in tqdm(pack.select(options.split)[: options.max_samples], unit="mesh"):
        mesh = pack.mesh(entry)
        stands = []
        for up in UP_AXES:
            stands.append(mesh.copy())
            stands[-1].vertices = turned(np.asarray(mesh.vertices), up)
        fields = {}
        for up, field in zip(UP_AXES, voxelize_many_for(vae, stands), strict=True):
            if isinstance(field, SparseSDF):
                fields[up] = field
            else:
                print(f"{entry.id}, up {up}: {field}", file=sys.stderr)
        if not fields:
            continue
        with torch.no_grad():
            codes = vae.Encode(collate_sparse_sdf(list(fields.values())))
        captions = json.dumps(captions_of(entry), ensure_ascii=False)
        for number, up in enumerate(fields):
            here = codes.coords[:, 0] == number
            name = f"{entry.offset}.{up}"
            values, coords = codes.feats[here, 0], codes.coords[here, 1:]
            writer.add(name, values.to("cpu", torch.int32), coords.to("cpu", torch.int16))
            about = {"split": up, "object": str(entry.offset), "source": entry.source, "captions": captions}
            rows.append({ID_COLUMN: name, **about})
    writer.flush()
    write_table(folder / METADATA, rows)


def captions_of(entry: PackEntry) -> list[str]:
    """Return an object's captions, or else its name."""
    return entry.record.get("captions") or [entry.record["name"]]


def ask(options: argparse.Namespace, codes: Path, file: Path) -> None:
    """Write the model's answers: id of the object -> way of standing -> what is said, and how surely."""
    folder = CodeFolder(codes)
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
            log_of_words = logs.gather(2, words[..., None])[..., 0]
            ended = words == processor.tokenizer.eos_token_id
            spoken = (ended.cumsum(1) - ended.int()) == 0  # the end itself counts
            means = ((log_of_words * spoken).sum(1) / spoken.sum(1)).tolist()
            texts = processor.tokenizer.batch_decode(words, skip_special_tokens=True)
            for shape, text, mean in zip(part, texts, means, strict=True):
                answers.setdefault(shape.row["object"], {})[up] = {"text": text.strip(), "mean_log": mean}
    write_json(file, answers, indent=1)


def measure(options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Return what the answers say."""
    answers = json.loads(file.read_text(encoding="utf-8"))
    pack = MeshPack(options.pack)
    entries = [e for e in pack.select(options.split) if set(answers.get(str(e.offset), ())) == set(UP_AXES)]
    by_way = [answers[str(e.offset)] for e in entries]
    network = [guess_up(pack.mesh(e)).up for e in tqdm(entries, unit="mesh")]
    weighed = []
    for entry in tqdm(entries, unit="mesh"):
        mesh = pack.mesh(entry)
        mesh.vertices = turned(np.asarray(mesh.vertices), "-z")  # now it stands along z
        weighed.append(usual_up(mesh).up)
    sure = np.array([[ways[up]["mean_log"] for up in UP_AXES] for ways in by_way])
    right = UP_AXES.index(STANDS_ALONG)
    pairs = np.stack([sure[:, right] > sure[:, UP_AXES.index(axis)] for axis in ("z", "-z")]).mean()
    encoder = load_sentence_encoder()
    untouched, upright = [ways["-z"]["text"] for ways in by_way], [ways["y"]["text"] for ways in by_way]
    rows = {
        "as they are": untouched,
        "turned by the network": [
            y if up == "z" else z for up, y, z in zip(weighed, upright, untouched, strict=True)
        ],
        "turned rightly": upright,
    }
    captions = [captions_of(e) for e in entries]
    scores = {row: sentence_similarities(encoder, texts, captions) for row, texts in rows.items()}
    return {
        "objects": len(entries),
        "split": options.split,
        "the language model": {"six": float((sure.argmax(1) == right).mean()), "y or z": float(pairs)},
        "the network": {"six": float(np.mean([up == STANDS_ALONG for up in network]))},
        "meshes along z": {
            "turned by the network": float(np.mean([up == "z" for up in weighed])),
            "sentence_bert": {row: round(100 * float(np.mean(values)), 2) for row, values in scores.items()},
        },
    }


def main() -> None:
    """Encode and ask where that was not done before; print and write what the answers say."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("pack", type=Path, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--split", default="val")
    parser.add_argument("--work", type=Path, default=Path("outputs_upright"), help="folder of codes and answers")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=24)
    parser.add_argument("--max_samples", type=int)
    parser.add_argument("--device")
    options = parser.parse_args()
    codes, answers = options.work / "turned", options.work / "answers.json"
    if not (codes / METADATA).is_file():
        encode(options, codes)
    if not answers.is_file():
        ask(options, codes, answers)
    result = measure(options, answers)
    print(json.dumps(result, indent=1))
    print(write_run(options, result, options.split))


if __name__ == "__main__":
    main()
