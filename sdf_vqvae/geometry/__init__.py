"""Meshes and distance fields: reading, voxelizing, extracting surfaces, comparing, drawing."""
