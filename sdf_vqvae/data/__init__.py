"""Where objects come from: files, packs, tables with captions, folders of fields."""
