"""On a GPU: the same answers, quantized loading by bitsandbytes, and transformers' trainer."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from vae_qwen3vl.pretrained import ShapeVLCollator, ShapeVLForConditionalGeneration

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
open_model = ShapeVLForConditionalGeneration.from_pretrained


def chat_inputs(processor, ask, ball):
    chat = ask(ball, "What is it?")
    return processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)


def test_answers_are_those_of_the_cpu(both, shape_processor, ask, ball):
    inputs = chat_inputs(shape_processor, ask, ball)
    expected = open_model(both.folder).generate(**inputs, max_new_tokens=12, do_sample=False)
    model = open_model(both.folder, device_map="cuda")
    assert model.device.type == "cuda"
    found = model.generate(**inputs.to("cuda"), max_new_tokens=12, do_sample=False)
    assert found.cpu().tolist() == expected.tolist()


@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes_quantizes_the_language_model_alone(both, shape_processor, ask, ball, bits):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    model = open_model(both.folder, device_map="cuda", quantization_config=config, merge_adapter=False)
    layers = {8: bitsandbytes.nn.Linear8bitLt, 4: bitsandbytes.nn.Linear4bit}[bits]
    assert any(isinstance(part, layers) for part in model.branch.vl_model.modules())
    assert not any(isinstance(part, layers) for part in model.branch.projector.modules())
    inputs = chat_inputs(shape_processor, ask, ball).to("cuda")
    exact = open_model(both.folder, device_map="cuda")
    with torch.no_grad():
        near, right = model(**inputs).logits.float(), exact(**inputs).logits.float()
    assert near.isfinite().all() and float((near - right).norm() / right.norm()) < 0.4
    assert model.generate(**inputs, max_new_tokens=4).shape[0] == 1


def test_the_trainer_trains_there_in_bfloat16(tmp_path, saved, shape_processor, ask, ball, box):
    def record(shape, answer):
        return {"messages": [*ask(shape, "What is it?"), {"role": "assistant", "content": answer}]}

    model = open_model(saved["qwen2_vl"].folder, is_trainable=True)
    given = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_steps": 6, "logging_steps": 1}
    quiet = {"remove_unused_columns": False, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), bf16=True, **given, **quiet),
        train_dataset=[record(ball, "A ball."), record(box, "A box with four legs.")],
        data_collator=ShapeVLCollator(processor=shape_processor),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert next(model.parameters()).device.type == "cuda"
    assert losses[-1] < losses[0]
