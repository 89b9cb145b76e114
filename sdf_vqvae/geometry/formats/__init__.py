"""Mesh files: glTF, OBJ, PLY, STL, OFF. The doors are `load_mesh` and `write_mesh` in `geometry.mesh`."""
