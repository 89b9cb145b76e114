"""A model is saved into one folder and opened again as it was; whatever does not belong together is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline

import vae_qwen3vl.pretrained as pretrained
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.describer import describe, load_describer
from vae_qwen3vl.language.default_model import DEFAULT_LM, default_lm_folder
from vae_qwen3vl.pretrained import ShapeVLConfig, ShapeVLForConditionalGeneration, ShapeVLProcessor
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.vae_latent_extractor import codebook_vectors

GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 6}
open_model = ShapeVLForConditionalGeneration.from_pretrained


def inputs_of(processor, ask, *shapes):
    chats = [ask(shape, "What is it?") for shape in shapes]
    return processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=True)


def logits_of(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def test_the_folder_reopened_says_exactly_what_its_parts_said(both, ask, ball, box) -> None:
    model, processor = open_model(both.folder), ShapeVLProcessor.from_pretrained(both.folder)
    inputs = inputs_of(processor, ask, ball, box)
    words = Processor3D(processor.tokenizer)(["What is it?"] * 2)
    assert torch.equal(words["input_ids"], inputs["input_ids"])
    shapes = {
        "feats_3d": codebook_vectors(inputs["codes_3d"], both.branch.vae_model),
        "coords_3d": inputs["coords_3d"],
    }
    with torch.no_grad():
        expected = both.branch(**words, **shapes)
        assert torch.equal(logits_of(model, inputs), expected.logits)
    answer = both.branch.generate(**words, **shapes, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :], answer)
    assert model.branch.prompt == "What is it?"


def test_auto_classes_and_the_pipeline_open_the_folder(saved, ask, meshes, ball, box) -> None:
    folder = saved["qwen2_vl"].folder
    assert isinstance(AutoConfig.from_pretrained(folder), ShapeVLConfig)
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert isinstance(model, ShapeVLForConditionalGeneration) and isinstance(processor, ShapeVLProcessor)
    inputs = inputs_of(processor, ask, ball)
    new = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    expected = processor.words.decode(new)

    pipe = pipeline("mesh-to-text", model=str(folder), device="cpu")
    generation = {"max_new_tokens": 5, "do_sample": False}
    assert pipe(str(meshes["ball"]), **generation) == [{"generated_text": expected[0]}]
    several = [ball, {"mesh": box, "text": "And this?"}, ask(ball, "like", box, "?")]
    alone = [pipe(one, **generation) for one in several]
    assert pipe(several[:2], batch_size=2, **generation) == alone[:2]
    assert pipe(several[2:] * 2, batch_size=2, **generation) == alone[2:] * 2
    beams = pipe(ball, num_beams=2, num_return_sequences=2, **generation)
    assert len(beams) == 2 and set(beams[0]) == {"generated_text"}
    ready = pipeline("mesh-to-text", model=model, device="cpu")  # finds its processor itself
    assert ready(ball, **generation) == alone[0]


def test_saved_by_reference_the_folder_names_the_language_model(
    tmp_path, make_branch, language_models, ask, ball, shape_processor, caplog
) -> None:
    reference = str(language_models["qwen2_vl"])
    model = ShapeVLForConditionalGeneration.from_branch(make_branch(), language_model=reference)
    model.save_pretrained(tmp_path / "named")
    assert "names a folder of this machine" in caplog.text
    assert not (tmp_path / "named" / "language_model").exists()
    assert json.loads((tmp_path / "named" / "config.json").read_text())["language_model"] == reference
    again = open_model(tmp_path / "named")
    inputs = inputs_of(shape_processor, ask, ball)
    assert torch.equal(logits_of(again, inputs), logits_of(model, inputs))
    again.save_pretrained(tmp_path / "whole", language_model=True)
    whole = open_model(tmp_path / "whole")
    assert torch.equal(logits_of(whole, inputs), logits_of(model, inputs))
    with pytest.raises(ValueError, match="save it whole"):
        whole.save_pretrained(tmp_path / "none", language_model=False)


def test_a_language_model_of_other_weights_than_what_it_names_is_saved_whole(
    tmp_path, make_branch, language_models, ask, ball, shape_processor
) -> None:
    reference = str(language_models["qwen2_vl"])
    model = ShapeVLForConditionalGeneration.from_branch(make_branch(), language_model=reference)
    model.save_pretrained(tmp_path / "named")
    inputs = inputs_of(shape_processor, ask, ball)
    before = logits_of(model, inputs)

    merged = open_model(tmp_path / "named", merge_adapter=True)
    torch.testing.assert_close(logits_of(merged, inputs), before, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert (tmp_path / "merged" / "language_model").is_dir() and not (tmp_path / "merged" / "lora").exists()
    assert torch.equal(logits_of(open_model(tmp_path / "merged"), inputs), logits_of(merged, inputs))

    trained = open_model(tmp_path / "named")
    with torch.no_grad():
        trained.branch.vl_model.get_base_model().model.language_model.norm.weight += 0.1
    with pytest.raises(ValueError, match="are not those of"):
        trained.save_pretrained(tmp_path / "lost", language_model=False)
    trained.save_pretrained(tmp_path / "trained")
    again = logits_of(open_model(tmp_path / "trained"), inputs)
    assert torch.equal(again, logits_of(trained, inputs)) and not torch.equal(again, before)


def test_what_is_said_of_the_language_model_counts_for_it_alone(saved, ask, ball, shape_processor) -> None:
    model = open_model(saved["qwen2_vl"].folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert {p.dtype for n, p in model.branch.vl_model.named_parameters() if "lora" not in n} == {torch.bfloat16}
    assert {p.dtype for p in model.branch.projector.parameters()} == {torch.float32}
    assert model.codebook.dtype == torch.float32 and model.dtype == torch.bfloat16
    assert model.branch.vl_model.config._attn_implementation == "eager"
    placed = open_model(saved["qwen2_vl"].folder, device_map="cpu", dtype=torch.bfloat16, attn_implementation="eager")
    by_auto = AutoModelForImageTextToText.from_pretrained(
        saved["qwen2_vl"].folder, dtype=torch.bfloat16, attn_implementation="eager"
    )
    assert by_auto.branch.vl_model.config._attn_implementation == "eager"
    inputs = inputs_of(shape_processor, ask, ball)
    assert torch.equal(logits_of(by_auto, inputs), logits_of(model, inputs))
    assert torch.equal(logits_of(placed, inputs), logits_of(model, inputs))


def test_torchao_quantises_the_language_model_on_a_cpu(saved, ask, ball, shape_processor) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    folder = saved["qwen2_vl"].folder
    small = open_model(folder, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), merge_adapter=False)
    weights = small.branch.vl_model.get_base_model().model.language_model.layers[0].mlp.up_proj.weight
    assert type(weights) is not torch.nn.Parameter and "Int8" in type(weights).__name__ + repr(weights)
    assert {p.dtype for p in small.branch.projector.parameters()} == {torch.float32}
    inputs = inputs_of(shape_processor, ask, ball)
    exact, rounded = logits_of(open_model(folder), inputs), logits_of(small, inputs)
    assert 0 < (exact - rounded).abs().max() < 0.1 * exact.abs().max()
    assert small.generate(**inputs, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 6


def test_sharded_language_models_open(tmp_path, saved, ask, ball, shape_processor) -> None:
    model = open_model(saved["qwen2_vl"].folder)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded" / "language_model").glob("model-*.safetensors"))) > 1
    inputs = inputs_of(shape_processor, ask, ball)
    assert torch.equal(logits_of(open_model(tmp_path / "sharded"), inputs), logits_of(model, inputs))


def test_saving_over_a_folder_leaves_nothing_of_what_was_there(tmp_path, saved, make_branch) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved["qwen2_vl"].folder, folder)
    ShapeVLForConditionalGeneration.from_branch(make_branch(lora=False)).save_pretrained(folder)
    assert not (folder / "lora").exists()
    assert not hasattr(open_model(folder).branch.vl_model, "peft_config")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: shutil.rmtree(f / "lora"), "trained with a LoRA adapter"),
        (lambda f: shutil.rmtree(f / "language_model"), "holds no language_model"),
        (lambda f: (f / "projector.safetensors").write_bytes(b"no"), "is not a projector file"),
        (lambda f: (f / "codebook.safetensors").unlink(), "was trained on codes of the VAE"),
        (
            lambda f: save_file(
                load_file(f / "codebook.safetensors"), f / "codebook.safetensors", {"vae_hash": "0" * 64}
            ),
            "was trained on codes of the VAE",
        ),
        (
            lambda f: save_file({"codebook": torch.zeros(4, 9)}, f / "codebook.safetensors"),
            "of different tokenizers",
        ),
    ],
    ids=["stopped", "no adapter", "no language model", "damaged", "no codebook", "another codebook", "another width"],
)
def test_a_folder_whose_parts_do_not_belong_together_is_refused(tmp_path, saved, change, said) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved["qwen2_vl"].folder, folder)
    change(folder)
    if said.startswith("was trained on") and not (folder / "codebook.safetensors").exists():
        shutil.rmtree(folder / "vae")  # else its codebook would do
    with pytest.raises(ValueError, match=said):
        open_model(folder)


def test_names_that_are_no_model_are_refused(tmp_path, language_models) -> None:
    for name, said in ((tmp_path, "holds no model"), (tmp_path / "no", "no folder"), ("a/b/c", "no folder")):
        with pytest.raises(ValueError, match=said):
            open_model(name)
    with pytest.raises(ValueError, match="holds a model of type 'qwen2_vl'"):
        open_model(language_models["qwen2_vl"])


def test_another_tokenizer_of_shapes_is_refused(saved, small_vae) -> None:
    with pytest.raises(ValueError, match="the model reads codes of the VAE"):
        ShapeVLProcessor.from_pretrained(saved["qwen2_vl"].folder, vae=small_vae)


def test_a_training_run_opens_with_one_call(
    tmp_path, make_branch, language_models, shape_vae, ask, ball, shape_processor
) -> None:
    from sdf_vqvae.model.checkpoint import save_vae

    save_vae(shape_vae, tmp_path / "vae")
    run, branch = tmp_path / "run", make_branch()
    branch.save_projector(run / "projector_final.pt")
    branch.save_lora(run / "lora_final")
    AlignmentConfig(
        vl_model=str(language_models["qwen2_vl"]), vae_ckpt=str(tmp_path / "vae" / "model.safetensors"), use_lora=True
    ).save(run / "train_args.json")
    model, processor = open_model(run), ShapeVLProcessor.from_pretrained(run, device="cpu")
    inputs = inputs_of(processor, ask, ball)
    branch.vl_model.load_state_dict(
        {n: v.bfloat16().float() if "lora" in n else v for n, v in branch.vl_model.state_dict().items()}
    )
    expected = ShapeVLForConditionalGeneration.from_branch(branch)
    assert torch.equal(logits_of(model, inputs), logits_of(expected, inputs))
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["language_model"] == str(
        language_models["qwen2_vl"]
    )
    shutil.rmtree(run / "lora_final")
    with pytest.raises(ValueError, match="trained with a LoRA adapter"):
        open_model(run)


def test_a_run_on_cached_codes_opens_with_their_codebook(
    tmp_path, make_branch, language_models, codes, small_vae
) -> None:
    from vae_qwen3vl.model import Qwen3VLWith3DBranch

    run = tmp_path / "run"
    branch = Qwen3VLWith3DBranch(language_models["qwen2_vl"], small_vae)
    branch.save_projector(run / "projector_final.pt")
    AlignmentConfig(vl_model=str(language_models["qwen2_vl"]), data_dir=str(codes)).save(run / "train_args.json")
    model = open_model(run)
    assert torch.equal(model.codebook, small_vae.vq.embeddings.weight)
    assert model.vae_hash == small_vae.fingerprint()


def test_programs_take_a_saved_folder_as_their_model(saved, shape_vae, ball, capsys, tmp_path) -> None:
    from vae_qwen3vl.commands.main import main

    folder = saved["qwen2_vl"].folder
    model = load_describer(shape_vae, folder, device="cpu", dtype=torch.float32)
    said = describe(model, ball, max_new_tokens=5)
    assert said.prompt == "What is it?"
    merged = open_model(folder, merge_adapter=True)
    merged.branch.vae_model = shape_vae
    assert describe(merged.branch, ball, max_new_tokens=5) == said
    ball.save(tmp_path / "ball.safetensors")
    arguments = (
        "describe",
        str(tmp_path / "ball.safetensors"),
        "--device",
        "cpu",
        "--vl_model",
        str(folder),
        "--max_new_tokens",
        "5",
    )
    assert main([*arguments, "--vae_ckpt", str(folder / "vae" / "model.safetensors")]) == 0
    assert capsys.readouterr().out.strip() == said.text
    assert main(arguments) == 2  # the shipped tokenizer of shapes is another
    assert "was trained on codes of the VAE" in capsys.readouterr().err
    with pytest.raises(ValueError, match="has its own projector"):
        load_describer(shape_vae, folder, folder / "projector.safetensors", device="cpu")


def test_random_weights_come_from_a_configuration_alone(saved) -> None:
    config = AutoConfig.from_pretrained(saved["qwen2_vl"].folder)
    model = AutoModelForImageTextToText.from_config(config)
    assert isinstance(model, ShapeVLForConditionalGeneration)
    assert model.codebook.shape == open_model(saved["qwen2_vl"].folder).codebook.shape
    with pytest.raises(ValueError, match="needs vl_config and projector"):
        ShapeVLForConditionalGeneration(ShapeVLConfig())


def test_the_processor_writes_the_shipped_tokenizer_of_shapes_only_when_asked(tmp_path, tokenizer, saved) -> None:
    from sdf_vqvae.model.checkpoint import load_vae_from_config

    shipped = load_vae_from_config(device="cpu")
    processor = ShapeVLProcessor(tokenizer, vae=shipped)
    processor.save_pretrained(tmp_path / "named")
    assert not (tmp_path / "named" / "vae").exists()
    processor.save_pretrained(tmp_path / "whole", vae=True)
    assert (
        load_vae_from_config(None, tmp_path / "whole/vae/model.safetensors", "cpu").fingerprint()
        == shipped.fingerprint()
    )


@pytest.mark.slow
def test_the_shipped_model_opens_by_its_name_and_says_what_programs_say(repository: Path, tmp_path) -> None:
    if default_lm_folder() is None:
        pytest.skip("the default language model is not on this machine")
    model, processor = open_model(pretrained.SHIPPED), ShapeVLProcessor.from_pretrained("shipped", device="cpu")
    codes = processor.encode_mesh(repository / "examples" / "chair.glb")
    expected = describe(load_describer(processor.vae, device="cpu", dtype=torch.float32), codes)
    pipe = pipeline("mesh-to-text", device="cpu")
    assert pipe(codes, do_sample=False, max_new_tokens=64) == [{"generated_text": expected.text}]
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["language_model"] == DEFAULT_LM
    assert not (tmp_path / "language_model").exists()


@pytest.fixture
def parts(tmp_path, make_branch, language_models, shape_vae):
    """Options of a program that name each part, as files of a run elsewhere."""
    from sdf_vqvae.model.checkpoint import save_vae

    save_vae(shape_vae, tmp_path / "vae")
    make_branch().save_projector(tmp_path / "run" / "projector_final.pt")
    make_branch().save_lora(tmp_path / "run" / "lora_final")
    named = {
        "--vl_model": language_models["qwen2_vl"],
        "--projector_ckpt": tmp_path / "run" / "projector_final.pt",
        "--vae_ckpt": tmp_path / "vae" / "model.safetensors",
    }
    return [str(word) for pair in named.items() for word in pair]


def test_a_program_packs_parts_into_one_folder(tmp_path, parts, capsys, ask, ball, language_models) -> None:
    from vae_qwen3vl.commands.main import main

    assert main(["pack-model", "-o", str(tmp_path / "whole"), "--json", *parts]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == sum(f.stat().st_size for f in (tmp_path / "whole").rglob("*") if f.is_file())
    assert {"config.json", "language_model/model.safetensors", "vae/model.safetensors"} <= told["files"].keys()
    inputs = inputs_of(ShapeVLProcessor.from_pretrained(tmp_path / "whole", device="cpu"), ask, ball)
    expected = logits_of(open_model(tmp_path / "whole"), inputs)

    assert main(["pack-model", "-o", str(tmp_path / "named"), "--by_name", *parts]) == 0
    assert not (tmp_path / "named" / "language_model").exists()
    assert (tmp_path / "named" / "vae").is_dir()  # no installation has this one
    assert torch.equal(logits_of(open_model(tmp_path / "named"), inputs), expected)

    assert (
        main(["pack-model", "-o", str(tmp_path / "merged"), "--merge_adapter", "--vl_model", str(tmp_path / "whole")])
        == 0
    )
    assert not (tmp_path / "merged" / "lora").exists()
    torch.testing.assert_close(logits_of(open_model(tmp_path / "merged"), inputs), expected, rtol=1e-4, atol=1e-4)
    assert main(["pack-model", "-o", str(tmp_path / "bare"), "--lora_dir", "none", *parts]) == 0
    assert not torch.allclose(logits_of(open_model(tmp_path / "bare"), inputs), expected, atol=1e-3)

    capsys.readouterr()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    refused = {
        "holds something else": ["-o", str(tmp_path / "other"), *parts],
        "has all parts": ["-o", str(tmp_path / "x"), *parts, "--vl_model", str(tmp_path / "whole")],
        "where the parts are read from": ["-o", str(tmp_path / "whole"), "--vl_model", str(tmp_path / "whole")],
        "changes the language model's weights": ["-o", str(tmp_path / "x"), "--merge_adapter", "--by_name", *parts],
        "belongs to the default language model": [
            "-o",
            str(tmp_path / "x"),
            "--vl_model",
            str(language_models["qwen2_vl"]),
        ],
    }
    for said, words in refused.items():
        assert main(["pack-model", *words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_hub_id_is_fetched_and_never_turned_into_a_path(
    tmp_path, monkeypatch, saved, ask, ball, shape_processor
) -> None:
    monkeypatch.chdir(tmp_path)
    commit = "0" * 40
    repository = tmp_path / "cache" / "models--owner--shapes"
    shutil.copytree(saved["qwen2_vl"].folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    inputs = inputs_of(shape_processor, ask, ball)
    offline = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    model = open_model("owner/shapes", **offline)
    assert torch.equal(logits_of(model, inputs), logits_of(open_model(saved["qwen2_vl"].folder), inputs))
    assert ShapeVLProcessor.from_pretrained("owner/shapes", **offline).vae_hash == ball.vae_hash
    with pytest.raises(OSError, match="owner/other"):
        open_model("owner/other", **offline)
    model.save_pretrained(tmp_path / "again")
    assert str(tmp_path / "cache") not in (tmp_path / "again" / "config.json").read_text()


def test_a_state_that_a_trainer_gathered_is_what_is_written(tmp_path, saved) -> None:
    model = open_model(saved["qwen2_vl"].folder)
    state = {name: value + 1 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "other", is_main_process=False, state_dict=state)
    assert not (tmp_path / "other").exists()
    model.save_pretrained(tmp_path / "gathered", is_main_process=True, state_dict=state)
    again = open_model(tmp_path / "gathered").state_dict()
    assert again.keys() == state.keys() and all(torch.equal(again[name], value) for name, value in state.items())
