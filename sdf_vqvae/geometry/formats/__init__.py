"""Mesh files, read and written: glTF, OBJ, PLY, STL, OFF. The door is `geometry.mesh.load_mesh`."""

WRITABLE = (".glb", ".obj", ".ply", ".stl", ".off")
"""Endings of the files that can be written."""
