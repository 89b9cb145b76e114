"""Which extensions of glTF are read, which change nothing that is read, and which must be refused by name."""

from __future__ import annotations

from typing import Any

from sdf_vqvae.geometry.formats.gltf_data import MESHOPT, GltfData, listing, mapping, short

DRACO = "KHR_draco_mesh_compression"
INSTANCING = "EXT_mesh_gpu_instancing"
VISIBILITY = "KHR_node_visibility"
PRIMITIVE_RESTART = ("KHR_mesh_primitive_restart", "EXT_mesh_primitive_restart")
_ARTICULATIONS = "AGI_articulations"
_CENTER = "CESIUM_RTC"
_READ = (DRACO, INSTANCING, VISIBILITY, *PRIMITIVE_RESTART, *MESHOPT, "KHR_mesh_quantization", "KHR_accessor_float64")
# Looks, light, sound, behaviour and knowledge about things: all of them leave triangles where they are. Names, or
# beginnings of names.
_HARMLESS = (
    "KHR_materials_", "KHR_texture_", "KHR_lights_", "KHR_xmp", "KHR_animation_pointer", "KHR_audio",
    "KHR_interactivity", "KHR_node_hoverability", "KHR_node_selectability", "KHR_physics_", "KHR_rigid_bodies",
    "KHR_implicit_shapes", "KHR_collision_shapes", "KHR_techniques_webgl", "KHR_environment_map",
    "EXT_materials_", "EXT_texture_", "EXT_textureInfo_", "EXT_lights_", "EXT_mesh_features", "EXT_instance_features",
    "EXT_feature_metadata", "EXT_structural_metadata", "EXT_mesh_manifold", "EXT_mesh_polygon",
    "EXT_mesh_primitive_edge_visibility", "ADOBE_materials_", "AGI_stk_metadata", "BENTLEY_materials_",
    "CESIUM_primitive_outline", "FB_geometry_metadata", "FB_ngon_encoding", "GODOT_single_root", "GRIFFEL_bim_data",
    "MAXAR_", "MPEG_animation_timing", "MPEG_audio_spatial", "MPEG_media", "MPEG_texture_video",
    "MPEG_viewport_recommended", "MSFT_audio", "MSFT_lod", "MSFT_packing_", "MSFT_texture_", "MSFT_rigid_bodies",
    "NV_materials_", "OMI_", "VRM",
)  # fmt: skip
# Each stands in the place of geometry, or moves it, so that what a reader without it sees is another object.
_UNREAD_GEOMETRY = (
    "EXT_primitive_voxels", "KHR_binary_glTF", "MPEG_accessor_timed", "MPEG_buffer_circular", "MPEG_mesh_linking",
    "MPEG_scene_dynamic", "NV_displacement_micromap", "WEB3D_quantized_attributes",
)  # fmt: skip


def check_version(document: dict[str, Any]) -> None:
    """Raise a ValueError unless the document says that it can be read as glTF 2.0."""
    asset = mapping(document, "asset")
    version, least = asset.get("version"), asset.get("minVersion", "2.0")
    if not isinstance(version, str) or version.split(".")[0] != "2":
        raise ValueError(f"only version 2 of glTF is read, not {short(str(version))}")
    if least != "2.0":
        raise ValueError(f"it needs a reader of glTF {short(str(least))}, and this one reads 2.0")


def check_extensions(data: GltfData) -> list[str]:
    """Return what is to be said about extensions that are left out.

    Raises:
        ValueError: an extension is required and unknown here, or changes geometry in a way that is not read.
    """
    required = data.extension_names("extensionsRequired")
    used = list(dict.fromkeys([*data.extension_names("extensionsUsed"), *required]))
    for name in used:
        if name in _UNREAD_GEOMETRY:
            raise ValueError(f"it uses {short(name)[1:-1]}, which changes its geometry and is not read")
    left = [name for name in used if name not in (*_READ, _CENTER, _ARTICULATIONS) and not name.startswith(_HARMLESS)]
    for name in left:
        if name in required:
            raise ValueError(f"it requires the extension {short(name)[1:-1]}, which is not read")
    _check_articulations(data.document)
    notes = [f"the extension {short(name)[1:-1]} is not known here and left out" for name in left]
    if _CENTER in used:
        notes.append(f"the place on the globe that {_CENTER} gives is left out")
    return notes


def _check_articulations(document: dict[str, Any]) -> None:
    """Raise a ValueError if parts of a model stand elsewhere than their nodes say."""
    for articulation in listing(mapping(mapping(document, "extensions"), _ARTICULATIONS), "articulations"):
        for stage in listing(articulation if isinstance(articulation, dict) else {}, "stages"):
            if not isinstance(stage, dict):
                raise ValueError(f"a stage of {_ARTICULATIONS} is {short(str(stage))}, not an object")
            neutral = 1 if str(stage.get("type", "")).lower().endswith("scale") else 0
            if stage.get("initialValue", neutral) != neutral:
                raise ValueError(
                    f"it uses {_ARTICULATIONS} with parts that are moved from the start, which is not read"
                )
