"""The tiny recipe, each of whose members is trained on a part of the training images."""

import dataclasses

import tiny


def recipe(members=3, epochs=1, seed=7, resample="kfold"):
    made = tiny.recipe(members=members, epochs=epochs, seed=seed)
    return dataclasses.replace(made, resample=resample, sampling="balanced", class_weight="balanced")
