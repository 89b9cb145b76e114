"""What this installation can do and what keeps it slow."""
