"""How soon words come on a GPU: time to the first token, to 20 words, and tokens a second, from codes in memory.

python benchmarks/speed/latency.py                               # on a GPU, both language models
python benchmarks/speed/latency.py --shapes default --tiny      # anywhere, a proof

The language models: `default`, the embedded one with the shipped projector; `2b`, of the shape of Qwen3-VL-2B with
random weights. Each answers through the engine, as `describe` and `serve` do, greedily and without an early end, with
CUDA graphs and, in the same run, as it is written. Two objects: one fills 512 3D tokens, the other is an example
mesh. Beside them chats of as many tokens without a shape, in the engine and in transformers' own `generate`,
with its growing cache and (`2b`) with its static cache, which it compiles. Times are medians of warm runs, of what a
caller sees; tokens a second are those behind the first. The floor is the time to read all weights and what the cache
holds once, at 4.3 TB/s. The first token's parts are timed one by one, each with a wait for the device.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from sdf_vqvae.codes.pipeline import encode_field, field_for, load_shape
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device
from vae_qwen3vl.describer import load_describer
from vae_qwen3vl.generation.answer import Sampling
from vae_qwen3vl.generation.engine import Engine
from vae_qwen3vl.language.backbone import fuse_norms, inference_dtype, text_layers, without_wrapper
from vae_qwen3vl.language.default_model import ensure_default_lm
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D
from vae_qwen3vl.sequence_3d import joined_coords
from vae_qwen3vl.vae_latent_extractor import codebook_vectors

ROOT = Path(__file__).resolve().parents[2]
TWENTY_WORDS = (
    "A small round wooden table with four turned legs, a wide flat top and one narrow drawer below the top."
)
_BYTES_A_SECOND = 4.3e12
_TOKENS_3D = 512
_2B = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
}
_TINY = {"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
Messages = list[dict[str, Any]]


# -- language models -----------------------------------------------------------------------------------------------


def default_model(vae: SparseSDFVQVAE, device: torch.device) -> Qwen3VLWith3DBranch:
    """Return the default model as `describe` loads it."""
    return load_describer(vae, device=device)


def shaped_like_2b(vae: SparseSDFVQVAE, device: torch.device, tiny: bool) -> Qwen3VLWith3DBranch:
    """Return a model of the shape of Qwen3-VL-2B with random weights and a small vision tower."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = _2B | (_TINY if tiny else {})
    vision = {"depth": 1, "hidden_size": 64, "num_heads": 4, "intermediate_size": 64, "deepstack_visual_indexes": [0]}
    vision["out_hidden_size"] = text["hidden_size"]
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    before = torch.get_default_dtype()
    torch.set_default_dtype(inference_dtype(device))
    try:
        with torch.device(device):
            torch.manual_seed(0)
            language_model = Qwen3VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model = Qwen3VLWith3DBranch(
        str(ensure_default_lm()),  # its tokenizer
        vae_model=vae,
        use_vl_model=language_model,
        projector_num_layers=2,
        merge=4,
        shape_tokens=2,
        max_3d_tokens=_TOKENS_3D,
    )
    return model.to(device).eval()


def endless(model: Qwen3VLWith3DBranch) -> Processor3D:
    """Return the model's processor; no token ends an answer any more."""
    processor = Processor3D.from_pretrained(model.model_name_or_path)
    processor.tokenizer.pad_token = processor.tokenizer.pad_token or processor.tokenizer.eos_token
    processor.tokenizer.eos_token = None
    without_wrapper(model.vl_model).generation_config.eos_token_id = None
    return processor


# -- chats ---------------------------------------------------------------------------------------------------------


def objects(model: Qwen3VLWith3DBranch, vae: SparseSDFVQVAE) -> dict[str, ShapeCodes]:
    """Return an object that fills the budget of 3D tokens, and an example mesh."""
    on_cpu = load_vae_from_config(None, None, "cpu")
    path = ROOT / "examples" / "mug.glb"
    mug = encode_field(on_cpu, field_for(on_cpu, load_shape(path)))
    side, merge = vae.config.latent_resolution, model.projector.merge
    blocks = torch.cartesian_prod(*[torch.arange(0, side, merge)] * 3)  # a code in each
    blocks = blocks[: _TOKENS_3D - model.projector.shape_tokens].int()
    grids = {"latent_resolution": side, "data_resolution": vae.config.data_resolution}
    full = ShapeCodes(
        codes=torch.arange(len(blocks), dtype=torch.int32),
        coords=blocks,
        center=(0.0, 0.0, 0.0),
        scale=1.0,
        vae_hash=vae.fingerprint(),
        **grids,
    )
    return {"512": full, "mug": mug}


def about_a_shape(prompt: str) -> Messages:
    """Return a chat about one shape."""
    return [{"role": "user", "content": [{"type": "3d"}, {"type": "text", "text": prompt}]}]


def words_of_length(processor: Processor3D, tokens: int) -> Messages:
    """Return a chat without a shape that has so many tokens."""

    def chat(count: int) -> Messages:
        return [{"role": "user", "content": "word" + " word" * count}]

    short = processor([chat(0)], objects=0)["input_ids"].shape[1]
    return chat(max(0, tokens - short))


# -- times ---------------------------------------------------------------------------------------------------------


def median_seconds(work: Callable[[], object], repeats: int, warm: int = 1) -> float:
    """Return the median seconds of some work, after runs that are not timed."""
    return statistics.median([seconds_of(work) for _ in range(warm + repeats)][warm:])


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds of some work, the device's too."""
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    """Wait for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def answering(engine: Engine, messages: Messages, shapes: list[ShapeCodes], tokens: int) -> Callable[[], None]:
    """Return work: a chat that is answered by so many tokens."""

    def work() -> None:
        answer = engine.submit(messages, shapes, Sampling(max_new_tokens=tokens))
        answer.text()
        assert answer.completion_tokens == tokens

    return work


def tokens_per_second_together(
    engine: Engine, messages: Messages, shapes: list[ShapeCodes], tokens: int, chats: int
) -> float:
    """Return how many tokens a second there are while so many equal chats are answered.

    Where the first have been answered before the last have come, answers become longer.
    """
    answers = [engine.submit(messages, shapes, Sampling(max_new_tokens=tokens)) for _ in range(chats)]
    seen: list[tuple[float, int]] = []
    while answers[0].finish_reason is None:
        load = engine.load()
        if load.active == chats:
            seen.append((time.perf_counter(), load.completion_tokens))
        time.sleep(0.002)
    for answer in answers:
        answer.text()
    if not seen or seen[-1][1] == seen[0][1]:
        return tokens_per_second_together(engine, messages, shapes, 2 * tokens, chats)
    return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])


def speeds(
    engine: Engine, messages: Messages, shapes: list[ShapeCodes], options: argparse.Namespace, **less: Any
) -> dict[str, Any]:
    """Return how soon one chat is answered, and how fast many are; `less` replaces options."""
    options = argparse.Namespace(**vars(options) | less)
    words = 2 if options.tiny else len(engine.processor.encode_text(TWENTY_WORDS))
    more, repeats = options.tokens, options.repeats
    first = [seconds_of(answering(engine, messages, shapes, 3)) for _ in range(2)]
    soon = median_seconds(answering(engine, messages, shapes, 1), repeats)
    numbers: dict[str, Any] = {
        "milliseconds_of_the_first_answers": [milliseconds(seconds) for seconds in first],
        "milliseconds_to_first_token": milliseconds(soon),
        "tokens_of_20_words": words,
        "milliseconds_to_20_words": milliseconds(
            median_seconds(answering(engine, messages, shapes, words), repeats, warm=0)
        ),
    }
    long = median_seconds(answering(engine, messages, shapes, 1 + more), repeats)
    numbers["tokens_per_second_1"] = round(more / (long - soon), 1)
    if options.chats > 1:
        for _ in range(2):  # the second counts
            speed = tokens_per_second_together(engine, messages, shapes, 4 * more, options.chats)
        numbers[f"tokens_per_second_{options.chats}"] = round(speed, 1)
    return numbers


def milliseconds(seconds: float) -> float:
    """Return seconds as milliseconds on file."""
    return round(1000 * seconds, 2)


def first_token_parts(
    model: Qwen3VLWith3DBranch, processor: Processor3D, messages: Messages, codes: ShapeCodes, repeats: int
) -> dict[str, float]:
    """Return milliseconds of what lies between codes and the first token, each waited for."""
    encoded = processor([messages], objects=0)
    coords = joined_coords([codes.coords])
    feats = codebook_vectors(codes.codes, model.vae_model)
    inputs = model.build_inputs(**encoded, feats_3d=feats, coords_3d=coords)
    base = without_wrapper(model.vl_model)
    hidden = base.model(**inputs.model_kwargs(), use_cache=False).last_hidden_state[:, -1]
    parts: dict[str, Callable[[], Any]] = {
        "write the chat": lambda: processor([messages], objects=0),
        "look codes up": lambda: codebook_vectors(codes.codes, model.vae_model),
        "project": lambda: model.tokens_3d(feats, coords),
        "project and merge": lambda: model.build_inputs(**encoded, feats_3d=feats, coords_3d=coords),
        "language model": lambda: base.model(**inputs.model_kwargs(), use_cache=False),
        "head": lambda: base.lm_head(hidden).argmax(-1).tolist(),
    }
    return {name: milliseconds(median_seconds(work, repeats)) for name, work in parts.items()}


def kernels(work: Callable[[], object], steps: int) -> dict[str, Any]:
    """Return how many kernels a step has, how long they take, and which take longest."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        wait()
    count, microseconds = collections.Counter[str](), collections.Counter[str]()
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            count[event.name[:90]] += 1
            microseconds[event.name[:90]] += event.time_range.elapsed_us()
    longest = [
        {"kernel": name, "times": round(count[name] / steps, 2), "microseconds": round(each / steps, 1)}
        for name, each in microseconds.most_common(25)
    ]
    total = sum(microseconds.values()) / steps
    return {"kernels": round(sum(count.values()) / steps), "microseconds": round(total), "longest": longest}


def waits(work: Callable[[], object]) -> dict[str, int]:
    """Return where some work makes the host wait for the device, and how often."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        work()
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(each.filename).name}:{each.lineno}" for each in said if "synchroniz" in str(each.message)]
    return dict(collections.Counter(places))


def floor_tokens_per_second(model: Qwen3VLWith3DBranch, places: int, chats: int) -> float:
    """Return how many tokens a second there would be if weights and cache were read once a step and nothing else."""
    base = without_wrapper(model.vl_model)
    weights = {id(p): p.nbytes for layer in text_layers(model.vl_model) for p in layer.parameters()}
    weights |= {id(p): p.nbytes for p in base.lm_head.parameters()}
    text = base.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * width * model.vl_model.dtype.itemsize
    return chats * _BYTES_A_SECOND / (sum(weights.values()) + cache * places * chats)


def transformers_speeds(model: Any, tokens: int, options: argparse.Namespace, **how: Any) -> dict[str, Any]:
    """Return the speed of transformers' own `generate` on so many tokens of text."""
    ids = torch.randint(100, 1000, (1, tokens), generator=torch.Generator().manual_seed(0)).to(model.device)

    def generating(count: int) -> Callable[[], object]:
        lengths = {"min_new_tokens": count, "max_new_tokens": count}
        return lambda: model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **lengths, **how
        )

    more = options.tokens
    begun = seconds_of(generating(1 + more))
    long = median_seconds(generating(1 + more), min(3, options.repeats))  # a static cache is as long as the answer
    short = median_seconds(generating(1), min(3, options.repeats))
    return {
        "tokens": tokens,
        "seconds_of_the_first_answer": round(begun, 2),
        "milliseconds_to_first_token": milliseconds(short),
        "tokens_per_second_1": round(more / (long - short), 1),
    }


# -- the run -------------------------------------------------------------------------------------------------------


def measured(shape: str, device: torch.device, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of one language model."""
    vae = load_vae_from_config(None, None, device)
    model = default_model(vae, device) if shape == "default" else shaped_like_2b(vae, device, options.tiny)
    chat = about_a_shape(model.prompt or DEFAULT_PROMPT)
    things = objects(model, vae)
    processor = endless(model)
    on_gpu = device.type == "cuda"
    fast = {"prefix_tokens": 0, "prefill_tokens": 2**16}
    if on_gpu:
        less = {"repeats": 1, "tokens": min(16, options.tokens), "chats": 1}
        with Engine(model, processor, **fast, graphs=False) as engine:
            yield {"object": "mug", "way": "as written"} | speeds(engine, chat, [things["mug"]], options, **less)
    if on_gpu and shape == "2b":  # the default comes with it
        less = {"repeats": 3, "chats": 1}
        with Engine(model, processor, **fast) as engine:
            row = {"object": "mug", "way": "graphs, norms as transformers writes them"}
            yield row | speeds(engine, chat, [things["mug"]], options, **less)
        fuse_norms(model.vl_model)
    way, lengths = "graphs" if on_gpu else "as written", {}
    with Engine(model, processor, **fast) as engine:
        for name, codes in things.items():
            asked = engine.submit(chat, [codes], Sampling(max_new_tokens=1))
            asked.text()
            lengths[name] = asked.prompt_tokens
            about = {"tokens": asked.prompt_tokens, "tokens_3d": asked.tokens_3d}
            yield {"object": name, "way": way, **about, **speeds(engine, chat, [codes], options)}
        only_text = words_of_length(processor, lengths["512"])
        yield {"object": "only text", "way": way, "tokens": lengths["512"], **speeds(engine, only_text, [], options)}
        if on_gpu:
            first, steps = answering(engine, chat, [things["mug"]], 1), 16
            yield {"object": "mug", "waits_before_the_first_token": waits(first)}
            if options.profile:
                answer = answering(engine, chat, [things["mug"]], 1 + steps)
                yield {"object": "mug", "what": "first token", **kernels(first, 1)}
                yield {"object": "mug", "what": "answer of 16 steps, a step", **kernels(answer, steps)}
    with torch.inference_mode():
        for name, codes in things.items():
            parts = first_token_parts(model, processor, chat, codes, options.repeats)
            yield {"object": name, "parts_of_the_first_token": parts}
    for chats in (1, options.chats):
        places = lengths["512"] + options.tokens // 2
        floor = floor_tokens_per_second(model, places, chats)
        yield {"way": "floor", "chats": chats, "places": places, "tokens_per_second": round(floor, 1)}
    if on_gpu:
        yield {"peak_megabytes": round(torch.cuda.max_memory_allocated() / 1e6)}
    plain = without_wrapper(model.vl_model)
    yield {"way": "transformers, growing cache", **transformers_speeds(plain, lengths["512"], options)}
    if on_gpu and shape == "2b" and not options.uncompiled:  # at last: it takes longest
        static = transformers_speeds(plain, lengths["512"], options, cache_implementation="static")
        yield {"way": "transformers, static cache, compiled", **static}


def main() -> None:
    """Measure each language model."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--shapes", default="default,2b", help="language models, with commas between")
    parser.add_argument("--tokens", type=int, default=64, help="tokens behind the first that speed is taken over")
    parser.add_argument("--chats", type=int, default=32, help="how many at a time, beside one")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs")
    parser.add_argument("--profile", action="store_true", help="which kernels take how long, too")
    parser.add_argument("--uncompiled", action="store_true", help="leave out what transformers compiles")
    parser.add_argument("--device", help="default: CUDA where present")
    parser.add_argument("--tiny", action="store_true", help="few tokens and runs, and a small `2b`: a proof")
    options = parser.parse_args()
    if options.tiny:
        options.tokens, options.repeats, options.chats = 4, 1, 2
    device = resolve_device(options.device)
    rows: list[dict[str, Any]] = []
    for shape in options.shapes.split(","):
        started = time.perf_counter()
        for row in measured(shape, device, options):
            rows.append({"language_model": shape, **row})
            shown = {key: value for key, value in rows[-1].items() if key != "longest"}
            print(json.dumps(shown), flush=True)
            for kernel in row.get("longest", ()):
                print("   ", json.dumps(kernel), flush=True)
            file = write_run(options, {"load": round(os.getloadavg()[0], 2), "rows": rows})
        print(f"{shape}: {time.perf_counter() - started:.0f} s", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    print(file)


if __name__ == "__main__":
    main()
