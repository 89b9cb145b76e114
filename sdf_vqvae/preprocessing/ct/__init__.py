"""CT scans with labels to organs as a dataset of fields."""
