"""Does everything that decides how a member goes on come back from its checkpoint?"""

import dataclasses
import json

import keras
import numpy as np

from keras_committee.training.checkpoint import BestEpoch, Checkpoint, MemberState

FIGURES = {
    "step": 7,
    "history": [{"epoch": 1, "loss": 0.7}],
    "losses": [0.2, 0.7],
    "num_correct": [3, 5],
    "gradients": [np.float32([0.2, 0.7]), np.float32([0.1, 0.3])],
    "block_run_counts": np.array([2.0, 1.0]),
    "timed_steps": (2, 0.7),
    "best": BestEpoch(1, 0.7, "best-000001"),
    "rollbacks": 2,
    "stopped_early": True,
}


def state(seed, **figures):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    optimizer = keras.optimizers.SGD(0.2, momentum=0.9)
    optimizer.build(model.trainable_variables)
    return MemberState(model, optimizer, **figures)


def test_every_figure_of_a_member_comes_back():
    saved, again = state(2, **FIGURES), state(7)
    again.restore(Checkpoint(7, saved.arrays(), json.loads(json.dumps(saved.document()))))
    names = [field.name for field in dataclasses.fields(MemberState)]
    assert names == ["model", "optimizer", "averages", *FIGURES]
    for name, figure in FIGURES.items():
        np.testing.assert_equal(getattr(again, name), figure, err_msg=name)
    for old, new in zip(saved.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
