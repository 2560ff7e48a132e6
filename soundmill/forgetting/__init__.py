"""Forgetting recordings and clips: listing them with all copies of their sound, erasing them, and proving that nothing is left."""

from soundmill.forgetting.listing import Outcome, forget, use_again
from soundmill.forgetting.proof import Erasure, check, erase, find
