import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from spai.data.augment import ViewSettings
from spai.data.batches import EpochBatches, ViewLoader, balanced_shares
from spai.data.images import FileSource
from spai.data.records import ImageRecord
from spai.data.training_records import check_classes, drop_missing, read_labelled
from spai.data.views import LabelledViews, PretrainingViews, Triplets

SETTINGS = ViewSettings(size=16)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    made = []
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        made.append(ImageRecord(path, path.name, index % 2, index))
    return made


def labelled(records, seed=0, views=2):
    return LabelledViews(records, FileSource(), SETTINGS, views=views, seed=seed)


def pretraining(records, low_ratio=0.5, seed=0):
    return PretrainingViews(
        records,
        FileSource(),
        size=16,
        min_area=0.2,
        interpolation="bicubic",
        low_ratio=low_ratio,
        seed=seed,
    )


def batches(dataset, epoch=0, first=0, batch_size=4, workers=0, rank=0, world=1):
    order = EpochBatches(len(dataset), batch_size, seed=0, rank=rank, world=world)
    return list(ViewLoader(dataset, order, workers=workers).epoch(epoch, first))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("make", [labelled, pretraining, lambda r: Triplets(labelled(r))])
def test_workers_do_not_change_batches(records, make, workers):
    assert_same(batches(make(records), workers=workers), batches(make(records)))


def test_loading_leaves_the_generator_of_the_model_alone(records):
    before = torch.get_rng_state()
    batches(labelled(records), workers=1)
    batches(labelled(records))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_that_live_on_see_the_new_epoch(records):
    loader = ViewLoader(labelled(records), EpochBatches(12, 4, seed=0), workers=2)
    first, second = list(loader.epoch(0)), list(loader.epoch(1))
    assert_same(first, batches(labelled(records), epoch=0))
    assert_same(second, batches(labelled(records), epoch=1))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_images_of_each_batch(records, world):
    whole = batches(labelled(records))
    parts = [
        batches(labelled(records), batch_size=4 // world, rank=rank, world=world)
        for rank in range(world)
    ]
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[number].images for part in parts]), batch.images)


def test_an_epoch_begun_in_the_middle_skips_without_decoding(records, monkeypatch):
    whole = batches(labelled(records))
    dataset = labelled(records)
    drawn = []
    monkeypatch.setattr(dataset, "draw", lambda key: drawn.append(key) or (torch.zeros(1), ()))
    batches(dataset, first=2)
    assert len(drawn) == 4
    assert_same(batches(labelled(records), first=2), whole[2:])


def test_epochs_images_views_and_seeds_differ(records):
    dataset = labelled(records)
    drawn = [*dataset[0, 3].images, *dataset[1, 3].images, *dataset[0, 5].images]
    drawn += labelled(records, seed=1)[0, 3].images
    for i, view in enumerate(drawn):
        assert not any(torch.equal(view, other) for other in drawn[i + 1 :])


def test_each_epoch_has_its_own_order_and_no_image_twice():
    order = EpochBatches(10, 3, seed=0)
    seen = []
    for epoch in range(2):
        order.epoch = epoch
        indices = [index for batch in order for _, index in batch]
        assert len(indices) == len(set(indices)) == 9  # what is left over is not used
        seen.append(indices)
    assert seen[0] != seen[1]


@pytest.mark.parametrize(("batch_size", "world"), [(11, 1), (6, 2)])
def test_a_batch_larger_than_the_data_set_is_refused(batch_size, world):
    with pytest.raises(ValueError, match="larger than the data set of 10"):
        EpochBatches(10, batch_size, seed=0, world=world)


def test_triplets_have_another_image_of_the_class_and_one_of_another(records, monkeypatch):
    views = labelled(records)
    drawn = []
    monkeypatch.setattr(views, "draw", lambda key: drawn.append(key) or (torch.zeros(1), ()))
    dataset = Triplets(views)
    for epoch in range(60):
        for index in range(len(records)):
            dataset[epoch, index]
    triplets = [tuple(index for _, index in drawn[i : i + 3]) for i in range(0, len(drawn), 3)]
    for anchor, positive, negative in triplets:
        assert anchor != positive
        assert anchor % 2 == positive % 2 != negative % 2
    assert {positive for anchor, positive, _ in triplets if anchor == 0} == {2, 4, 6, 8, 10}
    assert {negative for anchor, _, negative in triplets if anchor == 0} == {1, 3, 5, 7, 9, 11}


def test_triplets_of_a_class_with_one_image_are_refused(records):
    few = [records[0], records[1], records[2]]
    with pytest.raises(ValueError, match=r"two images of each class, found \{0: 2, 1: 1\}"):
        Triplets(labelled(few))


def test_the_low_band_is_kept_as_often_as_configured(records):
    dataset = pretraining(records, low_ratio=0.25)
    kept = [dataset[epoch, index].target for epoch in range(50) for index in range(12)]
    assert abs(np.mean(kept) - 0.25) < 4 * (0.25 * 0.75 / len(kept)) ** 0.5


def test_a_damaged_image_is_replaced_by_the_next_of_its_class(records, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    broken = [ImageRecord(damaged, "damaged.png", 0, 0), *records[1:]]
    sample = labelled(broken)[0, 0]
    assert sample.target == 0
    assert len(sample.replaced) == 1 and str(damaged) in sample.replaced[0]
    standing_in = labelled([records[2], *records[1:]])[0, 0]
    assert torch.equal(sample.images, standing_in.images)
    assert not labelled(broken)[0, 1].replaced


def test_images_that_are_all_damaged_are_an_error_that_names_one(tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match=r"1 images in a row.*damaged\.png"):
        labelled([ImageRecord(damaged, "damaged.png", 0, 0)])[0, 0]


def test_missing_images_are_counted_and_the_first_ten_named(records, tmp_path):
    missing = [ImageRecord(tmp_path / f"no{i}.png", f"no{i}.png", 0, i) for i in range(13)]
    with pytest.raises(ValueError, match=r"list\.csv: 13 of 25 images are missing") as error:
        drop_missing([*records, *missing], FileSource(), skip=False, where="list.csv")
    assert str(error.value).count("file not found") == 10
    kept, text = drop_missing([*records, *missing], FileSource(), skip=True, where="list.csv")
    assert kept == records and "13 of 25" in text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a.png", "0", "val")], "no rows with split='train'"),
        ([("a.png", "0", "train"), ("b.png", "2", "train")], "class '2' in line 3"),
        ([("a.png", "", "train")], "class '' in line 2"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(tmp_path, rows, message):
    csv = tmp_path / "list.csv"
    pd.DataFrame(rows, columns=["image", "class", "split"]).to_csv(csv, index=False)
    with pytest.raises(ValueError, match=message):
        read_labelled(csv, split="train", root=None)


@pytest.mark.parametrize("column", ["class", "split"])
def test_a_column_that_training_needs_is_named(tmp_path, column):
    csv = tmp_path / "list.csv"
    frame = pd.DataFrame([("a.png", 0, "train")], columns=["image", "class", "split"])
    frame.drop(columns=column).to_csv(csv, index=False)
    with pytest.raises(ValueError, match=f"'{column}' is missing"):
        read_labelled(csv, split="train", root=None)


def test_images_of_one_class_are_refused(records):
    check_classes(records, "list.csv")
    with pytest.raises(ValueError, match=r"list\.csv: all 6 images are of class 1"):
        check_classes(records[1::2], "list.csv")


# -- balanced drawing ------------------------------------------------------------------------------


def test_shares_balance_classes_and_temper_sources():
    groups = [(0, "a")] * 90 + [(0, "b")] * 10 + [(1, "c")] * 25
    shares = balanced_shares(groups)
    assert shares.sum() == pytest.approx(1)
    assert shares[:100].sum() == pytest.approx(0.5)
    assert shares[:90].sum() / shares[90:100].sum() == pytest.approx(3)  # sqrt(90 / 10)


def test_images_are_drawn_as_often_as_their_shares_say():
    shares = balanced_shares([(0, "a")] * 9 + [(1, "b")])
    order = EpochBatches(10, 10, seed=0, shares=shares)
    drawn = []
    for order.epoch in range(200):
        drawn += [index % 10 for _, index in next(iter(order))]
    assert drawn.count(9) / len(drawn) == pytest.approx(0.5, abs=0.05)


def test_an_image_drawn_again_in_an_epoch_gives_other_views(records):
    shares = balanced_shares([(0, "a")] + [(1, "b")] * 11)
    order = EpochBatches(12, 12, seed=0, shares=shares)
    keys = next(iter(order))
    again = [index for _, index in keys if index % 12 == 0]
    assert len(again) > 2 and len(set(keys)) == 12
    views = labelled(records)
    first, second = (views[0, index] for index in again[:2])
    assert first.target == second.target == 0
    assert not torch.equal(first.images, second.images)
