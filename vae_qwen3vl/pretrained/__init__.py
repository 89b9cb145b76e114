"""The model, its processor and its configuration as transformers knows them.

Importing this package registers them: `AutoConfig`, `AutoProcessor`, `AutoModelForImageTextToText` and
`AutoModelForMultimodalLM` open their folders from then on, and `pipeline("mesh-to-text")` is known. Nothing else
happens at import.
"""

import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from vae_qwen3vl.pretrained.collator import ShapeVLCollator
from vae_qwen3vl.pretrained.configuration import MODEL_TYPE, ShapeVLConfig
from vae_qwen3vl.pretrained.modeling import ShapeVLForConditionalGeneration
from vae_qwen3vl.pretrained.pipeline import TASK, MeshToTextPipeline
from vae_qwen3vl.pretrained.processing import ShapeVLProcessor
from vae_qwen3vl.trained_parts import SHIPPED, shipped_folder

__all__ = [
    "SHIPPED",
    "MeshToTextPipeline",
    "ShapeVLCollator",
    "ShapeVLConfig",
    "ShapeVLForConditionalGeneration",
    "ShapeVLProcessor",
]

AutoConfig.register(MODEL_TYPE, ShapeVLConfig, exist_ok=True)
AutoProcessor.register(ShapeVLConfig, ShapeVLProcessor, exist_ok=True)
for _auto in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
    if hasattr(transformers, _auto):  # the second is not in the first releases of transformers 5
        getattr(transformers, _auto).register(ShapeVLConfig, ShapeVLForConditionalGeneration, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=MeshToTextPipeline,
    pt_model=AutoModelForImageTextToText,
    default={"model": (str(shipped_folder()), "main")},
    type="multimodal",
)
