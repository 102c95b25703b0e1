"""Classification: head, inputs, targets, loss and score."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploynas.data import normalise
from deploynas.data.sources import load_digits
from deploynas.train.task import CLASSIFICATION, task_of


def test_a_data_set_has_a_task():
    digits = load_digits((), seed=0, max_size=64)
    task = task_of(digits)
    assert (task.name, task.metric) == ("classification", "top-1 accuracy")
    assert task.num_outputs(digits) == 10


def test_inputs_are_what_the_deployed_check_feeds():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    levels = [255 * torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std)]
    found = CLASSIFICATION.inputs(torch.from_numpy(pixels), *levels)
    np.testing.assert_allclose(found.numpy(), normalise(pixels, mean, std), rtol=1e-5, atol=1e-5)


def test_smoothed_labels_are_targets():
    labels = torch.tensor([2, 0])
    targets = CLASSIFICATION.targets(labels, 4, 0.2)
    torch.testing.assert_close(
        targets, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
    )
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.5, -1.0, 2.0]])
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(CLASSIFICATION.loss(logits, targets), expected)


def test_a_network_teaches_its_soft_predictions():
    logits = torch.tensor([[0.0, 1.0], [3.0, 3.0]])
    taught = CLASSIFICATION.taught(logits)
    torch.testing.assert_close(taught[1], torch.tensor([0.5, 0.5]))
    own = CLASSIFICATION.loss(logits, taught)
    assert CLASSIFICATION.loss(logits, CLASSIFICATION.taught(-logits)) > own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_and_doubles_stay(dtype):
    logits, labels = torch.tensor([[0.0, 1.0], [3.0, 3.0]]), torch.tensor([1, 0])
    narrow = CLASSIFICATION.loss(logits.to(dtype), labels)
    assert narrow.dtype == torch.float32
    assert narrow == CLASSIFICATION.loss(logits, labels)  # these logits are exact in both
    assert CLASSIFICATION.loss(logits.double(), labels).dtype == torch.float64


def test_score_counts_the_likeliest_class():
    logits = torch.tensor([[0.0, 1.0], [3.0, 2.0], [0.0, 5.0]])
    assert CLASSIFICATION.score(logits, torch.tensor([1, 1, 1])).tolist() == [True, False, True]
