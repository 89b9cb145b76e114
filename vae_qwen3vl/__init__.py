"""The language branch: discrete codes of a 3D shape become words, through Qwen2-VL or Qwen3-VL.

Builds on `sdf_vqvae` (shapes <-> codes), which knows nothing of this package. Names are loaded when first
used, so that `import vae_qwen3vl` stays light.
"""

from typing import TYPE_CHECKING

from sdf_vqvae.utils.lazy import names_from

if TYPE_CHECKING:
    from sdf_vqvae.codes.folder import CodeFolder
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from vae_qwen3vl.data.collate import collate_3d_text, collate_codes_caption, collate_sdf_caption
    from vae_qwen3vl.data.datasets_3d import CachedCodesDataset, Dummy3DTextDataset, SDF3DCaptionDataset
    from vae_qwen3vl.layout import PLACEHOLDER_3D
    from vae_qwen3vl.model import Qwen3VLWith3DBranch
    from vae_qwen3vl.pretrained import (
        ShapeVLCollator,
        ShapeVLConfig,
        ShapeVLForConditionalGeneration,
        ShapeVLProcessor,
    )
    from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D
    from vae_qwen3vl.projector import PositionEncoder3D, Projector3D
    from vae_qwen3vl.projector_file import ProjectorDescription, load_projector, save_projector
    from vae_qwen3vl.sequence_3d import prepare_3d_sequence, prepare_3d_sequence_batched
    from vae_qwen3vl.vae_latent_extractor import (
        codebook_vectors,
        extract_3d_latent,
        extract_3d_latent_and_indices,
    )

_HOMES = {
    "DEFAULT_PROMPT": "vae_qwen3vl.processor",
    "PLACEHOLDER_3D": "vae_qwen3vl.layout",
    "CachedCodesDataset": "vae_qwen3vl.data.datasets_3d",
    "CodeFolder": "sdf_vqvae.codes.folder",
    "Dummy3DTextDataset": "vae_qwen3vl.data.datasets_3d",
    "PositionEncoder3D": "vae_qwen3vl.projector",
    "Processor3D": "vae_qwen3vl.processor",
    "Projector3D": "vae_qwen3vl.projector",
    "ProjectorDescription": "vae_qwen3vl.projector_file",
    "Qwen3VLWith3DBranch": "vae_qwen3vl.model",
    "SDF3DCaptionDataset": "vae_qwen3vl.data.datasets_3d",
    "ShapeVLCollator": "vae_qwen3vl.pretrained",
    "ShapeVLConfig": "vae_qwen3vl.pretrained",
    "ShapeVLForConditionalGeneration": "vae_qwen3vl.pretrained",
    "ShapeVLProcessor": "vae_qwen3vl.pretrained",
    "codebook_vectors": "vae_qwen3vl.vae_latent_extractor",
    "collate_3d_text": "vae_qwen3vl.data.collate",
    "collate_codes_caption": "vae_qwen3vl.data.collate",
    "collate_sdf_caption": "vae_qwen3vl.data.collate",
    "extract_3d_latent": "vae_qwen3vl.vae_latent_extractor",
    "extract_3d_latent_and_indices": "vae_qwen3vl.vae_latent_extractor",
    "load_projector": "vae_qwen3vl.projector_file",
    "load_vae_from_config": "sdf_vqvae.model.checkpoint",
    "prepare_3d_sequence": "vae_qwen3vl.sequence_3d",
    "prepare_3d_sequence_batched": "vae_qwen3vl.sequence_3d",
    "save_projector": "vae_qwen3vl.projector_file",
}

__all__ = [
    "DEFAULT_PROMPT",
    "PLACEHOLDER_3D",
    "CachedCodesDataset",
    "CodeFolder",
    "Dummy3DTextDataset",
    "PositionEncoder3D",
    "Processor3D",
    "Projector3D",
    "ProjectorDescription",
    "Qwen3VLWith3DBranch",
    "SDF3DCaptionDataset",
    "ShapeVLCollator",
    "ShapeVLConfig",
    "ShapeVLForConditionalGeneration",
    "ShapeVLProcessor",
    "codebook_vectors",
    "collate_3d_text",
    "collate_codes_caption",
    "collate_sdf_caption",
    "extract_3d_latent",
    "extract_3d_latent_and_indices",
    "load_projector",
    "load_vae_from_config",
    "prepare_3d_sequence",
    "prepare_3d_sequence_batched",
    "save_projector",
]


__getattr__, __dir__ = names_from(__name__, _HOMES)
