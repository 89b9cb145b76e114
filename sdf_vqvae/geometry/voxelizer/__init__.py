"""Triangles to distances at voxels: the door is `voxelize.voxelize`; each fast kernel stands beside its plain twin."""
