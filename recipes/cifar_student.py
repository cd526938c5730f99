"""One speed net on CIFAR-10 that learns from a committee of four: most of its accuracy at the cost of one member.

    keras-committee train recipes/cifar_fast.py
    keras-committee train recipes/cifar_student.py --set teacher=runs/cifar_fast
    keras-committee select runs/cifar_student runs/cifar_fast --cascade

The last command puts the student in front of its teachers: they see only the images of which it is not sure.

Expected: 90.2 % on CIFAR-10 (JPEG q75) with 5,000 images left out for validation, where a member of `cifar_fast`
without a teacher reaches 89.6 %.
Source: Hinton et al. 2015, arXiv:1503.02531; the network: Jordan 2024, arXiv:2404.00498.
"""

import dataclasses

import cifar_fast

from keras_committee import Teacher


def recipe(
    teacher="runs/cifar_fast",
    temperature=2.0,
    weight=0.9,
    members=1,
    epochs=16,
    batch_size=1024,
    learning_rate=1.5,
    widths="64-256-256",
    validation=5_000,
    precision="auto",
    data_dir=None,
    seed=0,
):
    """The arguments are the recipe parameters: `--set name=value`, typed by these defaults.

    The student is a member of `recipes/cifar_fast.py`, trained as such a member is, with a teacher besides. `teacher`
    is the run folder of the committee, an export or a `.keras` file. `temperature` and `weight` are those of the
    teacher's part of the loss; the labels, smoothed as those of the teacher, have the rest. `members` students differ
    in their seed. The other parameters are those of `cifar_fast`.
    """
    member = cifar_fast.recipe(
        members=members,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        widths=widths,
        validation=validation,
        precision=precision,
        data_dir=data_dir,
        seed=seed,
    )
    return dataclasses.replace(member, teacher=Teacher(teacher, temperature=temperature, weight=weight))
