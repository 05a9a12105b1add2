"""Privacy cards: all that a reviewer asks of a private training, on one card.

`tf_dpfp.privacy_card` makes the card of a model, `read_card` reads it from a
file, and `python -m tf_dpfp card FILE.keras` prints it.
"""

from tf_dpfp.cards.card import PrivacyCard
from tf_dpfp.cards.card import read_card
from tf_dpfp.cards.making import privacy_card

__all__ = ["PrivacyCard", "privacy_card", "read_card"]
