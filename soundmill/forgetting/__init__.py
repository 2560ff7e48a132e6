"""Forgetting recordings and clips: listing them with every other copy of their sound, proving that nothing holds them, erasing."""

from soundmill.forgetting.erasing import Erased, erase
from soundmill.forgetting.listing import Outcome, forget, use_again
from soundmill.forgetting.proof import check

__all__ = ["Erased", "Outcome", "check", "erase", "forget", "use_again"]
