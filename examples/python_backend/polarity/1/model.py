"""A model in plain Python: texts in, a score and a word out. Serve it: lrai serve python_backend

The same shape holds work before and after another model: tokenising, scaling, naming classes.
"""

from pathlib import Path
from typing import Any

import numpy as np

INPUTS = [("text", "BYTES", [-1])]
OUTPUTS = [("score", "FP32", [-1]), ("label", "BYTES", [-1])]

words: dict[bytes, int] = {}


def load(context: Any) -> None:
    """Called once, before the first batch; what it reads stays."""
    for line in Path(context.path, "words.txt").read_bytes().splitlines():
        word, value = line.split()
        words[word] = int(value)


def predict(inputs: dict[str, Any]) -> dict[str, Any]:
    """Called once per batch: the rows of several requests together. An error refuses it."""
    texts = inputs["text"]
    if any(not text.strip() for text in texts):
        raise ValueError("a text is empty. hint: send at least one word")
    found = [[words.get(word, 0) for word in text.lower().split()] for text in texts]
    scores = np.array([sum(values) / len(values) for values in found], np.float32)
    labels = np.where(scores > 0, b"good", np.where(scores < 0, b"bad", b"neutral"))
    return {"score": scores, "label": labels.astype(object)}
