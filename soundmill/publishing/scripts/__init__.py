"""Scripts that are published with a model, as `load.py`: they import nothing of this project."""
