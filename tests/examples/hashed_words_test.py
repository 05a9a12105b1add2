import numpy as np

from examples.trainers import hashed_words


def test_words_count_once_whatever_their_case():
    texts = ["Free money!", "free MONEY ! money", "", "free"]
    both, again, empty, one = hashed_words.encode(texts, 64)
    np.testing.assert_array_equal(both, again)
    assert not empty.any() and np.count_nonzero(one) == 1
    assert np.count_nonzero(both) == 3
    np.testing.assert_allclose(np.linalg.norm([both, one], axis=1), 10**0.5)


def test_places_do_not_depend_on_other_texts_or_on_the_process():
    texts = ["one two three", "four 5 six"]
    alone = [hashed_words.encode([text], 16)[0] for text in texts]
    np.testing.assert_array_equal(hashed_words.encode(texts, 16), alone)
    # CRC-32 of "hello" is 0x3610a686: the same everywhere, and positive.
    (hello,) = hashed_words.encode(["hello"], 16)
    assert np.flatnonzero(hello).tolist() == [6] and hello[6] > 0


def test_rare_words_of_public_texts_weigh_more():
    weight = hashed_words.rarity(["the cat", "the dog", "The end the"])
    assert weight("the") == 0.0
    np.testing.assert_allclose(weight("cat"), np.log(2))
    np.testing.assert_allclose(weight("unheard"), np.log(4))
    (vector,) = hashed_words.encode(["the cat"], 64, weight)
    assert np.count_nonzero(vector) == 1
