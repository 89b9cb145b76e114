"""Answers for many people at once: the engine that batches chats, the HTTP server, workers that read meshes."""
