"""Answers for many people at once: the HTTP server, its limits, and workers that read meshes."""
