"""The language model itself and its helpers: nothing here knows of shapes."""
