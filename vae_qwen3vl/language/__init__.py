"""The language model itself and its helpers: nothing here knows of shapes."""

DEFAULT_PROMPT = "Describe this 3D shape in one sentence:"
"""What a model is asked where nobody says."""
