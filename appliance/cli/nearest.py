"""The simplest rival of a fine-tuned model: answer with the most similar training row's answer.

Similarity is the cosine of TF-IDF vectors over words, pairs of words and character 3- and 4-grams
(Manning, Raghavan, Schütze: Introduction to Information Retrieval, section 6.4, "ltc" weighting).
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"[a-z0-9'-]+")
CHARACTER_NGRAMS = (3, 4)

Vector = dict[str, float]


class NearestNeighbour:
    """Looks questions up in a fixed set of question and answer pairs."""

    def __init__(self, examples: Sequence[tuple[str, str]]) -> None:
        counts = [_features(question) for question, _ in examples]
        documents = Counter(feature for count in counts for feature in count)
        self._size = len(examples)
        self._documents = documents
        self._answers = [answer for _, answer in examples]
        self._vectors = [self._vector(count) for count in counts]

    def answer(self, question: str) -> str:
        """The answer of the most similar example; the first one of several."""
        vector = self._vector(_features(question))
        similarities = [_dot(vector, other) for other in self._vectors]
        return self._answers[similarities.index(max(similarities))]

    def _vector(self, counts: Counter[str]) -> Vector:
        weights = {
            feature: (1 + math.log(count)) * self._inverse_document_frequency(feature)
            for feature, count in counts.items()
        }
        norm = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
        return {feature: weight / norm for feature, weight in weights.items()}

    def _inverse_document_frequency(self, feature: str) -> float:
        return math.log((1 + self._size) / (1 + self._documents[feature])) + 1


def _features(text: str) -> Counter[str]:
    words = _WORD.findall(text.lower())
    features = Counter(f"word {word}" for word in words)
    features.update(f"pair {a} {b}" for a, b in itertools.pairwise(words))
    features.update(f"characters {gram}" for gram in _character_ngrams(f" {' '.join(words)} "))
    return features


def _character_ngrams(text: str) -> Iterable[str]:
    for length in CHARACTER_NGRAMS:
        yield from (text[start : start + length] for start in range(len(text) - length + 1))


def _dot(left: Vector, right: Vector) -> float:
    return sum(weight * right.get(feature, 0.0) for feature, weight in left.items())
