"""The page on which a person plays with the models of a checkout: make, change, compare, keep. No sound is computed here."""
