"""Sets of prompts, and what a text-conditioned model does with each: generate, classify, compare with shuffled prompts."""
