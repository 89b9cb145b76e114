"""What a model says about objects, under controls, as numbers and as a page."""
