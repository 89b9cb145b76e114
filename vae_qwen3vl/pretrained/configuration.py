"""What a folder of a saved model says of it in `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

MODEL_TYPE = "shape_vl"


class ShapeVLConfig(PreTrainedConfig):
    """Configuration of `ShapeVLForConditionalGeneration`.

    Args:
        vl_config: configuration of the language model (Qwen2-VL or Qwen3-VL); None where it is taken from the
            language model itself when that is opened.
        language_model: what opens the language model: its short name, Hub id or folder. None: it lies in the
            folder's `language_model`.
        projector: what the projector is, as `ProjectorDescription` has it. Its file says the same, and counts.
        codebook_size: entries of the codebook whose codes are read.
        **kwargs: for `PreTrainedConfig`.
    """

    model_type = MODEL_TYPE
    sub_configs = {"vl_config": AutoConfig}  # noqa: RUF012  as transformers declares it

    def __init__(
        self,
        vl_config: PreTrainedConfig | Mapping[str, Any] | None = None,
        language_model: str | None = None,
        projector: Mapping[str, Any] | None = None,
        codebook_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(vl_config, Mapping):
            values = dict(vl_config)
            vl_config = CONFIG_MAPPING[values.pop("model_type")](**values)
        self.vl_config: Any = vl_config
        self.language_model = language_model
        self.projector = None if projector is None else dict(projector)
        self.codebook_size = codebook_size
        super().__init__(**kwargs)

    @property
    def text_config(self) -> Any:
        """The language model's text part, where transformers looks for widths and layers."""
        if self.vl_config is None:
            raise AttributeError("the language model's configuration is not known before it is opened")
        return self.vl_config.text_config
