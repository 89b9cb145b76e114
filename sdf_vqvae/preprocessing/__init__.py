"""Raw files to datasets of fields."""
