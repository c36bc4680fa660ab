"""RefCLIP's language encoder: words, size, padding, and its norm."""

import torch

from cpgr.language import LanguageConfig, LanguageEncoder, Norm, Words, split_words


def test_words_are_split_as_published():
    assert split_words("The man's T-shirt, (left/right); #2!") == ["the", "mans", "t", "shirt", "left", "right", "2"]


def test_numbers_are_in_the_order_of_first_sight():
    words = Words.of(["a red car", "the red dog", "cls"])
    assert words.words == ["PAD", "UNK", "CLS", "a", "red", "car", "the", "dog", "cls"]
    assert words.encode(["red cat", "the red dog runs"], 3).tolist() == [[4, 1, 0], [6, 4, 7]]


def test_published_size():
    """11,101,697 trained parameters beside the word vectors."""
    with torch.device("meta"):
        encoder = LanguageEncoder(LanguageConfig(), 10_344)
    assert sum(p.numel() for p in encoder.parameters()) == 11_101_697 + 10_344 * 300


def test_padding_is_not_attended_to():
    torch.manual_seed(0)
    encoder = LanguageEncoder(LanguageConfig(word_width=8, width=16, layers=2, heads=2, ffn=16), 9).eval()
    ids = torch.tensor([[3, 4, 5, 0, 0]])
    with torch.no_grad():
        _, one = encoder(ids)
        encoder.embedding.weight[0] += 3.0  # the GRU runs over the padding, which comes last: the words before do not feel it
        _, two = encoder(ids)
    torch.testing.assert_close(one, two)


def test_norm_divides_by_the_unbiased_deviation():
    x = torch.tensor([[1.0, 2.0, 4.0]])
    torch.testing.assert_close(Norm(3)(x), (x - 7 / 3) / (torch.tensor([1.0, 2.0, 4.0]).std() + 1e-6))
