"""Which words occur in a text, as a short vector that looks at no private text.

A list of the words that occur in a data set would have to be private, and so
would their frequencies. A hash of a word knows neither; how rare a word is may
be told by texts that are public.
"""

from __future__ import annotations

import collections
import math
import re
import zlib
from collections.abc import Callable, Iterable

import numpy as np

# Words, numbers, and each other sign.
_WORD = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")
_SIGN_BIT = 31
# As long as a record of a dozen answers, beside the 1 of a bias.
_LENGTH = 10.0**0.5


def rarity(public_texts: Iterable[str]) -> Callable[[str], float]:
    """Makes weights of words: the rarer in public texts, the larger.

    Args:
        public_texts: Texts that no guarantee has to cover.

    Returns:
        The logarithm of the number of texts for one with the word, as if there
        were one more.
    """
    texts = list(public_texts)
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(_words(text))
    return lambda word: math.log((1 + len(texts)) / (1 + counts[word]))


def encode(
    texts: Iterable[str],
    places: int,
    weight: Callable[[str], float] = lambda word: 1.0,  # noqa: ARG005
) -> np.ndarray:
    """Turns texts into vectors, each by itself.

    A word that occurs adds its weight in one place, with a sign, by its hash;
    how often it does is not counted. All vectors are of one length.

    Args:
        texts: Texts; case is ignored.
        places: Length of a vector; of several words in a place the signs tell
            apart what they can.
        weight: Weight of a word; it must look at no private text.

    Returns:
        `float32` of shape `(n, places)`; zeros for a text without words.
    """
    texts = list(texts)
    vectors = np.zeros((len(texts), places), "float32")
    for vector, text in zip(vectors, texts, strict=True):
        for word in _words(text):
            code = zlib.crc32(word.encode())
            sign = -1.0 if code >> _SIGN_BIT else 1.0
            vector[code % places] += sign * weight(word)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors * (_LENGTH / np.maximum(lengths, 1e-6))


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
