"""One object through the tokenizer, with its place in source units kept: mesh -> field -> codes -> mesh.

The door for people; what stands behind it is in `codes.pipeline` and `fields.conversion`.
"""

from sdf_vqvae.codes.pipeline import (
    as_read,
    check_codes,
    decode_codes,
    encode_field,
    field_for,
    load_shape,
    surface_of,
    up_for,
    voxelize_for,
)
from sdf_vqvae.fields.conversion import convert_field, field_in_world

__all__ = [
    "as_read",
    "check_codes",
    "convert_field",
    "decode_codes",
    "encode_field",
    "field_for",
    "field_in_world",
    "load_shape",
    "surface_of",
    "up_for",
    "voxelize_for",
]
