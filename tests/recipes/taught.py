"""One linear model that learns from a trained committee of them."""

import dataclasses

import tiny

from keras_committee import Teacher


def recipe(teacher="runs/tiny", members=1):
    student = tiny.recipe(members=members, epochs=1)
    return dataclasses.replace(student, teacher=Teacher(teacher, temperature=3.0, weight=0.7))
