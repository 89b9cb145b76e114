"""Mesh files, read and written: glTF, OBJ, PLY, STL, OFF. The door is `geometry.mesh.load_mesh`."""
