"""Check that the profiler page lists the convolutions of a member."""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from xprof.convert.raw_to_tool_data import xspace_to_tool_data

from keras_committee import models

member, images = models.wide_resnet(10, 1, classes=10), np.full((4, 32, 32, 3), 70.0, np.float32)
step = tf.function(member)
step(images)
with tf.profiler.experimental.Profile("logs"):
    step(images)
trace = next(Path("logs").rglob("*.xplane.pb"))
table, _ = xspace_to_tool_data([str(trace)], "framework_op_stats", {})
if table is None or b"Conv2D" not in (table if isinstance(table, bytes) else table.encode()):
    sys.exit(f"error: the table lists no convolution: {str(table)[:300]}")
