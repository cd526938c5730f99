"""Pools of synthetic predictions: members that are more accurate the more they cost."""

from pathlib import Path

import numpy as np

from keras_committee.evaluation.pool import Pool, PoolMember


def synthetic_predictions(seed, examples, strengths, classes=4):
    """`(log probabilities, labels)`: the stronger a member, the higher its logits of the true class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    hard = rng.normal(size=(examples, 1, classes))  # shared by all members
    logits = hard + 1.5 * rng.normal(size=(examples, len(strengths), classes))
    logits += np.array(strengths)[:, None] * np.eye(classes)[labels][:, None]
    logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))
    return logits.astype(np.float32), labels.astype(np.int32)


def synthetic_pool(strengths=(0.9, 1.0, 1.1, 1.7, 1.9), mflops=(1.0, 1.0, 1.0, 2.5, 2.5), seed=0, examples=400):
    splits = {
        "validation": synthetic_predictions(seed, examples, strengths),
        "test": synthetic_predictions(seed + 1, 300, strengths),
    }
    return Pool(
        members=tuple(
            PoolMember(
                run=Path("runs", f"cost-{cost}"),
                index=index,
                weights_hash=f"{index:064x}",
                name=f"net_{cost}",
                parameters=int(100 * (cost or 7)),
                mflops=cost,
                architecture=str(cost),
                uncounted=("'rows' (LSTM)",) if cost is None else (),
            )
            for index, cost in enumerate(mflops)
        ),
        classes=("a", "b", "c", "d"),
        predictions={split: log_probs for split, (log_probs, _) in splits.items()},
        labels={split: labels for split, (_, labels) in splits.items()},
        missing={},
    )
