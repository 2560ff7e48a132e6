"""A trained model as a directory for others: written and checked by `model`, described by `card`."""
