"""Which verification cases rounding could change, and which warm-up requests are written."""

import dataclasses

import numpy as np
import tensorflow as tf
from committees import choose

from keras_committee.export.verification_cases import VerificationCases, write_warmup
from keras_committee.selection import AcceptanceRule, Promise, SetRule
from keras_committee.tfserving.tf_protocol import WARMUP_FILE


def test_examples_near_a_threshold_or_a_tie_are_ambiguous():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.4, 0.4, 0.2], [0.9, 0.08, 0.02]], np.float32)
    predictions = np.log(probabilities)[:, None].repeat(2, axis=1)  # two equal members
    cases = VerificationCases(np.arange(4), predictions, predictions)
    assert cases.unambiguous(choose(2, thresholds=[0.70003])).images.tolist() == [1, 3]
    assert cases.unambiguous(choose(2)).images.tolist() == [0, 1, 3]
    other = VerificationCases(np.arange(4), predictions, predictions[::-1])
    assert other.unambiguous(choose(2)).images.tolist() == [0, 3]  # a tie as pixels or as encoded images


def test_examples_whose_set_or_acceptance_rounding_may_change_are_ambiguous():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.3, 0.2], [0.9, 0.08, 0.02]], np.float32)
    predictions = np.log(probabilities)[:, None]
    cases = VerificationCases(np.arange(4), predictions, predictions)
    sets = SetRule(coverage=0.9, method="lac", thresholds=(0.2001,))
    acceptance = AcceptanceRule(max_risk=0.1, certainty=0.95, threshold=0.600005)
    promise = Promise(split="validation", examples=9, chosen_on=9, sets=sets, acceptance=acceptance)
    assert cases.unambiguous(choose(1, promise=promise)).images.tolist() == [0, 2, 3]
    promise = dataclasses.replace(promise, sets=dataclasses.replace(sets, thresholds=(0.200005,)))
    assert cases.unambiguous(choose(1, promise=promise)).images.tolist() == [3]


def test_warmup_requests_above_4_mib_are_left_out(tmp_path):
    predictions = np.log(np.array([[[0.7, 0.2, 0.1]]], np.float32))
    cases = VerificationCases(np.zeros((1, 300, 200, 3), np.uint8), predictions, predictions)
    write_warmup(tmp_path, cases, choose(1), ["serving_default", "predict_bytes"])
    records = list(tf.data.TFRecordDataset(str(tmp_path / WARMUP_FILE)))
    assert len(records) == 1 + 3  # pixels in batches of 1 (0.7 MB; 8 are 5.8 MB), and files in batches of 1, 8 and 32
