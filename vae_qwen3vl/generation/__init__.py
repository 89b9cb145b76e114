"""Answers to many chats about shapes at once: the engine, its cache, and answers while they are written."""
