"""Alignment training: what is minimised, the loop, and what a run leaves behind."""
