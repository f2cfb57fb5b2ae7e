import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from spai.models.losses import supervised_contrastive_loss, triplet_loss

REFERENCE = json.loads(
    (Path(__file__).parents[1] / "reference" / "modes.json").read_text(encoding="utf-8")
)["supervised_contrastive"]


@pytest.mark.parametrize(
    ("labels", "loss"),
    [("labels", "loss"), ("labels_when_one_class_is_single", "loss_when_one_class_is_single")],
)
def test_contrastive_loss_equals_the_recorded_one(labels, loss):
    features = np.random.RandomState(5).standard_normal((6, 2, 8)).astype(np.float32)
    found = supervised_contrastive_loss(
        torch.from_numpy(features),
        torch.tensor(REFERENCE[labels]),
        temperature=REFERENCE["temperature"],
    )
    assert_close(found.item(), REFERENCE[loss], atol=1e-5, rtol=0)


def test_contrastive_anchors_without_a_positive_are_left_out():
    features = torch.randn(5, 1, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 1, 2])
    unit = torch.nn.functional.normalize(features[:, 0], dim=1)
    similarities = (unit @ unit.T / 0.07).fill_diagonal_(-torch.inf)
    logs = similarities.log_softmax(dim=1)
    expected = -(logs[0, 1] + logs[1, 0] + logs[2, 3] + logs[3, 2]) / 4
    assert_close(supervised_contrastive_loss(features, labels), expected, atol=1e-5, rtol=1e-5)


def test_contrastive_loss_without_any_positive_is_zero_and_not_nan():
    features = torch.randn(2, 1, 4, requires_grad=True)
    loss = supervised_contrastive_loss(features, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(features.grad).all()


def test_contrastive_loss_ignores_the_length_of_features():
    features = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1])
    assert_close(
        supervised_contrastive_loss(3 * features, labels),
        supervised_contrastive_loss(features, labels),
        atol=1e-4,
        rtol=0,
    )


def test_triplet_loss_is_the_mean_excess_of_distances():
    anchor = torch.zeros(2, 1, 2)
    positive = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])  # 5 and 1 away
    negative = torch.tensor([[[0.0, 2.0]], [[0.0, 9.0]]])  # 2 and 9 away
    features = torch.stack([anchor, positive, negative], dim=1)  # [B, 3, V, D]
    assert_close(triplet_loss(features, margin=0.5).item(), 3.5 / 2, atol=1e-5, rtol=0)
