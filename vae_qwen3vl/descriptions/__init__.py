"""Words about many objects: what lies at paths, asked in batches, and the file of answers that grows as they come."""
