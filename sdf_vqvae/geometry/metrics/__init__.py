"""How far one surface is from another: the door is `scores.compare_meshes`."""
