"""The pipeline "mesh-to-text" of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, Pipeline
from transformers.utils.chat_template_utils import Chat

from vae_qwen3vl.pretrained.processing import ShapeVLProcessor
from vae_qwen3vl.processor import DEFAULT_PROMPT

TASK = "mesh-to-text"


class MeshToTextPipeline(Pipeline):
    """Answers a question about meshes.

    ```python
    pipe = pipeline("mesh-to-text")
    pipe("chair.glb")                                  # [{"generated_text": "..."}]
    pipe(["chair.glb", "table.obj"], text="What is it?", batch_size=2)
    ```

    An input is whatever `ShapeVLProcessor.encode_mesh` takes, `{"mesh": ..., "text": ...}`, or a chat with meshes.
    """

    _load_processor = None
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=128)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is None:
            self.processor: Any = ShapeVLProcessor.from_pretrained(self.model.name_or_path, device=self.device)
            self.tokenizer, self.image_processor = self.processor.tokenizer, self.processor.image_processor

    def _sanitize_parameters(
        self,
        text: str | None = None,
        up: str | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        **generation: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        reading = {name: value for name, value in (("text", text), ("up", up)) if value is not None}
        generation |= generate_kwargs or {}
        return reading, {"generate_kwargs": generation} if generation else {}, {}

    def preprocess(self, inputs: Any, text: str | None = None, up: str | None = None) -> dict[str, Any]:
        """Return the chat about an input, its meshes as codes."""
        if isinstance(inputs, Chat):
            return {"chat": [_encoded(message, self.processor, up) for message in inputs.messages]}
        asked = text or self.model.branch.prompt or DEFAULT_PROMPT
        if isinstance(inputs, Mapping):
            inputs, asked = inputs["mesh"], inputs.get("text", asked)
        shape = {"type": "mesh", "mesh": self.processor.encode_mesh(inputs, up)}
        return {"chat": [{"role": "user", "content": [shape, {"type": "text", "text": asked}]}]}

    def _forward(self, inputs: Any, generate_kwargs: dict[str, Any] | None = None) -> dict[str, Tensor]:
        chats = inputs["chat"]
        chats = [chats] if isinstance(chats[0], Mapping) else chats
        encoded = self.processor(chats).to(self.model.device)
        generation = self._prepare_generate_kwargs(generate_kwargs or {}, return_dict_in_generate=False)
        out = self.model.generate(**encoded, **generation)
        new = out[:, encoded["input_ids"].shape[1] :]
        return {"new_ids": new.unflatten(0, (len(chats), -1))}  # [B, answers, new]

    def postprocess(self, model_outputs: Any) -> list[dict[str, str]]:
        """Return the answers about one input."""
        answers = self.processor.words.decode(model_outputs["new_ids"].flatten(0, -2))
        return [{"generated_text": answer} for answer in answers]


def _encoded(message: Mapping[str, Any], processor: ShapeVLProcessor, up: str | None) -> dict[str, Any]:
    """Return a message with its meshes as codes."""
    content = message["content"]
    if isinstance(content, str):
        return dict(message)
    parts = [
        {"type": "mesh", "mesh": processor.encode_mesh(part["mesh"], part.get("up", up))}
        if part.get("type") == "mesh"
        else part
        for part in content
    ]
    return {**message, "content": parts}
