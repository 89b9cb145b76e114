"""Objects with words: texts, datasets, batches, and what training changes about them."""
