"""What every room leans on: files, jobs, settings, programs. Knows nothing of shapes."""
