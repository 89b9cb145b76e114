"""Triangles to distances at voxels: the door is `voxelize.voxelize`; fast kernels stand beside plain twins."""
