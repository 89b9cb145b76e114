"""Meshes and distance fields: reading, voxelizing, extracting surfaces, comparing, drawing."""

MAX_RESOLUTION = 1024
"""Largest side of a grid."""
