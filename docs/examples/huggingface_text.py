"""A Hugging Face text classifier, built from a configuration and trained on the spot; nothing is downloaded.

Short reviews are made of a small vocabulary. Some words never occur in training; a review of such words should leave
the classifier in doubt. Only the two layers of the classification head move; everything below runs once per batch.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, DistilBertConfig, DistilBertForSequenceClassification

from laplace_fiber import FiberLaplace, TrajectorySampler
from laplace_fiber.metrics import evaluate, uncertainty

GOOD, BAD = ("good", "fine", "great", "lovely"), ("bad", "poor", "awful", "dull")
NEUTRAL = ("the", "film", "plot", "was", "and", "acting", "music", "a")
UNSEEN = ("quixotic", "verdant", "oblique", "saturnine", "baroque", "lapidary")
WORDS = ("[PAD]", *GOOD, *BAD, *NEUTRAL, *UNSEEN)
LENGTH, FLIPPED = 8, 0.1


class Logits(nn.Module):
    """The model as posteriors need it: one argument, a batch, and logits in return."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: BatchEncoding) -> Tensor:
        """Logits (b, 2)."""
        return self.inner(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def reviews(n: int, seed: int) -> BatchEncoding:
    """Neutral words and two or three that tell the class; one label in ten is wrong."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    ids = torch.zeros(n, LENGTH, dtype=torch.long)
    for row, label in zip(ids, labels.tolist(), strict=True):
        telling = int(torch.randint(2, 4, (), generator=generator))
        words = [GOOD if label else BAD] * telling + [NEUTRAL] * (LENGTH - telling)
        chosen = [WORDS.index(group[int(torch.randint(len(group), (), generator=generator))]) for group in words]
        row.copy_(torch.tensor(chosen)[torch.randperm(LENGTH, generator=generator)])
    wrong = torch.rand(n, generator=generator) < FLIPPED
    return encoded(ids, torch.where(wrong, 1 - labels, labels))


def encoded(ids: Tensor, labels: Tensor) -> BatchEncoding:
    """A batch as a tokenizer makes it."""
    return BatchEncoding({"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels})


def main(short: bool = False) -> dict[str, float]:
    """Train, fit, and look at reviews with words that the model has never seen."""
    train, test = [reviews(50, seed) for seed in range(4 if short else 6)], reviews(100 if short else 500, 100)
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "dim": 32, "hidden_dim": 64, "n_heads": 2, "vocab_size": len(WORDS)}
    model = Logits(DistilBertForSequenceClassification(DistilBertConfig(**sizes, max_position_embeddings=LENGTH)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for batch in [batch for _ in range(15) for batch in train]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), batch["labels"]).backward()
        optimizer.step()

    model.eval()
    sampler = TrajectorySampler(n_particles=8, n_steps=10) if short else None
    la = FiberLaplace(model, "classification", subset=["inner.pre_classifier", "inner.classifier"], sampler=sampler)
    la.fit(train)

    unseen = torch.randint(
        len(WORDS) - len(UNSEEN), len(WORDS), (200, LENGTH), generator=torch.Generator().manual_seed(1)
    )
    strange = encoded(unseen, torch.zeros(200, dtype=torch.long))
    results = {}
    with torch.no_grad():
        alone = model(test).softmax(-1), model(strange).softmax(-1)
    predictions = {"network": alone, "posterior": (la(test), la(strange))}
    for name, (known, unknown) in predictions.items():
        scores = evaluate(known, test["labels"])
        doubt = float(uncertainty(unknown, classes=True).mean())
        print(
            f"{name:10} NLL {scores['nll']:.3f}   accuracy {scores['accuracy']:.3f}   "
            f"mean entropy of reviews in unseen words {doubt:.3f} nats"
        )
        results |= {f"nll of the {name}": scores["nll"], f"doubt of the {name}": doubt}
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer reviews and a shorter walk")
    main(**vars(parser.parse_args()))
