"""Pools of made-up votes: members that are right more often the more they cost."""

from pathlib import Path

import numpy as np

from keras_committee.evaluation.pool import Pool, PoolMember


def made_up_votes(seed, examples, strengths, classes=4):
    """`(log probabilities, labels)`: the stronger a member, the more its logits favour the true class."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, examples)
    hard = draw.normal(size=(examples, 1, classes))  # what all members find hard alike
    logits = hard + 1.5 * draw.normal(size=(examples, len(strengths), classes))
    logits += np.array(strengths)[:, None] * np.eye(classes)[labels][:, None]
    logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))
    return logits.astype(np.float32), labels.astype(np.int32)


def made_up_pool(strengths=(0.9, 1.0, 1.1, 1.7, 1.9), mflops=(1.0, 1.0, 1.0, 2.5, 2.5), seed=0, examples=400):
    splits = {"validation": made_up_votes(seed, examples, strengths), "test": made_up_votes(seed + 1, 300, strengths)}
    return Pool(
        members=tuple(
            PoolMember(
                run=Path("runs", f"cost-{cost}"),
                index=place,
                weights_hash=f"{place:064x}",
                name=f"net_{cost}",
                parameters=int(100 * cost),
                mflops=cost,
                architecture=str(cost),
            )
            for place, cost in enumerate(mflops)
        ),
        classes=("a", "b", "c", "d"),
        predictions={split: votes for split, (votes, _) in splits.items()},
        labels={split: labels for split, (_, labels) in splits.items()},
        missing={},
    )
