import csv
import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from spai.checkpoint import build_model, read_pickle
from spai.config import load_config
from spai.data.batches import TrainingBatch
from spai.engine.distributed import Ranks, ranks_of_run
from spai.engine.optim import OptimizerSettings, Schedule, build_optimizer, parameter_groups
from spai.engine.state import seed_everything
from spai.engine.step import Stepper
from spai.engine.tasks import ContrastiveTask, PretrainingTask, SupervisedTask
from spai.engine.train import EpochDone, FitSettings, StepDone, steps_per_epoch
from spai.models.backbone import build_backbone, use_fused_attention
from spai.models.mfm import MaskedFrequencyModel
from tests.engine.toy import DEVICE, TINY, toy_fit, write_images
from tests.recipe import reference_image, reference_weight

FOLDER = Path(__file__).parents[1] / "reference"
TRAINING = json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
RATES = json.loads((FOLDER / "lr_schedule.json").read_text(encoding="utf-8"))


def reference_model():
    model = build_model(load_config(overrides=list(TRAINING["opts"].items())))
    weights = {
        name: torch.from_numpy(reference_weight(name, tuple(tensor.shape)))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(weights)
    use_fused_attention(model.backbone, False)
    model.backbone.requires_grad_(False)
    return model


def reference_batch():
    """Each image as its two patches."""
    images = [
        torch.from_numpy(reference_image(entry["height"], entry["width"], entry["seed"]))
        for entry in TRAINING["images"]
    ]
    patches = torch.stack(images).permute(0, 3, 1, 2).unflatten(3, (2, 224))  # [B, 3, S, 2, S]
    return TrainingBatch(
        patches.permute(0, 3, 1, 2, 4).contiguous(), torch.tensor(TRAINING["labels"]), ()
    )


def tiny_model(**changes):
    """A tiny model without anything random in its forward pass."""
    seed_everything(0)
    still = {"MODEL.SID_DROPOUT": 0.0, "MODEL.DROP_PATH_RATE": 0.0}
    return build_model(load_config(overrides=list({**TINY, **still, **changes}.items()))).train()


def tiny_batch(images=2):
    generator = torch.Generator().manual_seed(0)
    shape = (images, 2, 3, 32, 32)
    views = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return TrainingBatch(views, torch.arange(images) % 2, ())


def stepper_of(task, *, accumulation=1, clip_norm=None, optimizer=None):
    return Stepper(
        task,
        optimizer or build_optimizer(task.model, OptimizerSettings()),
        precision="fp32",
        accumulation=accumulation,
        clip_norm=clip_norm,
        device=DEVICE,
        ranks=Ranks(),
    )


def supervised(model):
    return SupervisedTask(model, lambda copied: None, [], Ranks())


@pytest.fixture(scope="module")
def reference_run():
    model, batch = reference_model().train(), reference_batch()
    stepper = stepper_of(supervised(model))
    steps = TRAINING["steps_per_epoch"]
    schedule = Schedule("cosine", 5e-4, 2.5e-7, 2.5e-7, steps=3 * steps, warmup_steps=steps)
    found, gradients = [], []
    for entry in TRAINING["steps"]:
        stepper.add(batch, complete=True)
        if not gradients:
            gradients = sorted(n for n, p in model.named_parameters() if p.grad is not None)
        loss, norm = stepper.finish(schedule.at_step(entry["step"]))
        found.append((loss, norm, schedule.after_update(entry["step"])))
    return model, found, gradients


def test_losses_and_gradient_norms_equal_the_recorded_ones(reference_run):
    for entry, (loss, norm, _) in zip(TRAINING["steps"], reference_run[1], strict=True):
        tolerance = 1e-4 if entry["step"] <= 3 else 1e-2
        assert_close(loss, entry["loss"], rtol=tolerance, atol=0)
        assert_close(norm, entry["grad_norm"], rtol=tolerance, atol=0)


def test_learning_rates_of_the_run_equal_the_recorded_ones(reference_run):
    for entry, (_, _, lr) in zip(TRAINING["steps"], reference_run[1], strict=True):
        assert_close(lr, entry["lr_after"], rtol=0, atol=1e-9)


def test_the_recorded_tensors_and_no_others_receive_a_gradient(reference_run):
    assert reference_run[2] == TRAINING["tensors_with_gradient"]


def test_parameters_after_the_run_have_the_recorded_sums(reference_run):
    parameters = dict(reference_run[0].named_parameters())
    for name, expected in TRAINING["parameter_sums_after"].items():
        assert_close(parameters[name].double().sum().item(), expected, rtol=0, atol=1e-4)


def test_matrices_decay_and_other_parameters_do_not():
    decayed, others = parameter_groups(reference_model(), 0.05)
    assert (len(decayed["params"]), decayed["weight_decay"]) == (38, 0.05)
    assert (len(others["params"]), others["weight_decay"]) == (74, 0.0)
    assert all(parameter.ndim > 1 for parameter in decayed["params"])


def test_the_backbone_has_its_own_rate_when_asked():
    model = reference_model()
    groups = parameter_groups(model, 0.05, scaled=model.backbone, scale=0.1)
    backbone = set(map(id, model.backbone.parameters()))
    for group in groups:
        inside = {id(parameter) in backbone for parameter in group["params"]}
        assert inside == {group["lr_scale"] == 0.1}
    assert [(g["lr_scale"], g["weight_decay"]) for g in groups] == [
        (1.0, 0.05),
        (1.0, 0.0),
        (0.1, 0.05),
        (0.1, 0.0),
    ]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_exempt_parameters_do_not_decay():
    vit = reference_model().backbone
    _, others = parameter_groups(vit, 0.05, exempt=("pos_embed", "cls_token"))
    assert {id(vit.pos_embed), id(vit.cls_token)} <= {id(p) for p in others["params"]}


def test_cosine_schedule_equals_the_recorded_one():
    steps = RATES["steps_per_epoch"]
    schedule = Schedule(
        "cosine", 5e-4, 2.5e-7, 2.5e-7, RATES["epochs"] * steps, RATES["warmup_epochs"] * steps
    )
    for update, lr in RATES["lr_at_update"].items():
        assert_close(schedule.after_update(int(update)), lr, rtol=0, atol=1e-9)
    assert schedule.at_step(0) == schedule.at_step(1) == 2.5e-7
    assert schedule.at_step(51) == schedule.after_update(50)


def test_cosine_schedule_equals_timm():
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-3)
    timm = CosineLRScheduler(
        optimizer,
        t_initial=40,
        lr_min=1e-5,
        warmup_lr_init=1e-6,
        warmup_t=7,
        cycle_limit=1,
        t_in_epochs=False,
        warmup_prefix=False,
    )
    schedule = Schedule("cosine", 3e-3, 1e-6, 1e-5, steps=40, warmup_steps=7)
    for step in range(45):
        assert_close(optimizer.param_groups[0]["lr"], schedule.at_step(step), rtol=1e-12, atol=0)
        timm.step_update(step)


def test_linear_step_and_multistep_schedules_end_where_they_should():
    linear = Schedule("linear", 1.0, 0.1, 0.2, steps=20, warmup_steps=4)
    assert_close([linear.after_update(u) for u in (0, 4, 12, 20)], [0.1, 1.0, 0.6, 0.2])
    step = Schedule("step", 1.0, 0.1, 0.0, 20, 2, decay_steps=5, decay_rate=0.5)
    assert_close([step.after_update(u) for u in (1, 4, 5, 10)], [0.55, 1.0, 0.5, 0.25])
    multi = Schedule("multistep", 1.0, 0.1, 0.0, 20, 0, decay_rate=0.1, milestones=(3, 6))
    assert_close([multi.after_update(u) for u in (0, 2, 3, 6)], [1.0, 1.0, 0.1, 0.01])


def test_an_incomplete_group_counts_as_a_step():
    assert [steps_per_epoch(batches, 3) for batches in (1, 3, 4, 6)] == [1, 1, 2, 2]


def test_accumulated_batches_give_the_gradient_of_one_large_batch():
    batch = tiny_batch()
    halves = [TrainingBatch(batch.images[i : i + 1], batch.targets[i : i + 1], ()) for i in (0, 1)]
    whole, parts = (stepper_of(supervised(tiny_model()), accumulation=n) for n in (1, 2))
    whole.add(batch, complete=True)
    for index, half in enumerate(halves):
        parts.add(half, complete=index == 1)
    assert_close(whole.finish(0.0), parts.finish(0.0), rtol=1e-5, atol=0)


def test_gradients_are_clipped_and_the_norm_before_is_reported():
    parameter = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(parameter.weight)

    class Sum:
        model = parameter

        def loss(self, forward, images, targets):
            from spai.engine.step import StepLoss

            return StepLoss(forward(images).sum(), torch.tensor(1))

    optimizer = torch.optim.SGD(parameter.parameters(), lr=0.0)
    stepper = stepper_of(Sum(), clip_norm=1.0, optimizer=optimizer)
    stepper.add(TrainingBatch(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), ()), complete=True)
    _, norm = stepper.finish(1.0)
    assert_close(norm, 5.0)
    assert_close(parameter.weight.detach(), torch.tensor([[-0.6, -0.8]]), atol=1e-4, rtol=0)


def test_a_loss_that_is_not_finite_stops_training():
    model = tiny_model()
    nn.init.constant_(model.cls_head.head[6].bias, float("nan"))
    stepper = stepper_of(supervised(model))
    stepper.add(tiny_batch(), complete=True)
    with pytest.raises(RuntimeError, match="the loss is nan"):
        stepper.finish(0.1)


def test_checkpointing_changes_no_gradient():
    found = []
    for use_checkpoint in (False, True):
        model = tiny_model(**{"TRAIN.USE_CHECKPOINT": use_checkpoint})
        stepper = stepper_of(supervised(model))
        stepper.add(tiny_batch(), complete=True)
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_validation_leaves_the_model_as_it_was():
    from spai.detectors.spai import SpaiDetector

    config = load_config(overrides=list(TINY.items()))
    model = build_model(config).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def detector(copied):
        return SpaiDetector(copied, None, {"precision": "bf16"}, device=DEVICE)

    SupervisedTask(model, detector, [], Ranks()).evaluate(0)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_a_frozen_backbone_keeps_its_weights_and_its_drop_path():
    config = load_config(overrides=[*TINY.items(), ("MODEL.DROP_PATH_RATE", 0.5)])
    model = build_model(config).train()
    model.backbone.requires_grad_(False)
    before = [p.clone() for p in model.backbone.parameters()]
    stepper = stepper_of(supervised(model))
    batch = TrainingBatch(
        torch.randint(0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1]), ()
    )
    losses = []
    for _ in range(4):
        stepper.add(batch, complete=True)
        losses.append(stepper.finish(0.0)[0])
    assert len(set(losses)) == 4  # dropout of paths and features differs
    stepper.add(batch, complete=True)
    stepper.finish(0.1)
    assert all(map(torch.equal, before, model.backbone.parameters()))


@pytest.mark.parametrize("margin", [None, 0.5])
def test_contrastive_training_leaves_head_and_norm_alone(margin):
    config = load_config(overrides=list(TINY.items()))
    model = build_model(config).train()
    task = ContrastiveTask(model, [], margin=margin, device=DEVICE, ranks=Ranks())
    shape = (4, 2, 3, 32, 32) if margin is None else (4, 3, 2, 3, 32, 32)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    loss = task.loss(model, images, torch.tensor([0, 1, 0, 1]))
    loss.mean.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert all(name.startswith(("cls_head.", "norm.")) for name in without)


def test_a_run_writes_what_it_promises(tmp_path):
    source = write_images(tmp_path / "images")
    settings = FitSettings(epochs=2, save_all=True)
    events = list(toy_fit(source, tmp_path / "run", settings=settings))
    assert [type(event) for event in events] == 2 * [*4 * [StepDone], EpochDone]
    for epoch in range(2):
        content = torch.load(tmp_path / f"run/ckpt_epoch_{epoch}.pth", weights_only=True)
        assert content["epoch"] == epoch and isinstance(content["config"], str)
        assert 0 <= content["max_accuracy"] <= 1
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["progress"]["step"] == 8
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    names = ["epoch", "train_loss", "lr", "val_loss", "val_acc", "val_ap", "val_auc"]
    assert list(rows[0]) == names
    assert float(rows[1]["val_loss"]) == events[-1].row["val_loss"]


def test_only_epochs_that_improve_leave_a_checkpoint(tmp_path):
    source = write_images(tmp_path / "images")
    events = list(toy_fit(source, tmp_path / "run", settings=FitSettings(epochs=4)))
    epochs = [event for event in events if isinstance(event, EpochDone)]
    losses = [event.row["val_loss"] for event in epochs]
    improved = [i for i, loss in enumerate(losses) if loss < min(losses[:i], default=9e9)]
    assert [event.row["epoch"] for event in epochs if event.saved] == improved
    written = sorted(path.name for path in (tmp_path / "run").glob("ckpt_*"))
    assert written == [f"ckpt_epoch_{epoch}.pth" for epoch in improved]
    assert epochs[-1].best_loss == min(losses)


def test_equal_seeds_give_equal_losses(tmp_path):
    source = write_images(tmp_path / "images")
    settings = FitSettings(epochs=1, accumulation=3)
    runs = [list(toy_fit(source, tmp_path / name, settings=settings)) for name in "ab"]
    assert runs[0][:-1] == runs[1][:-1]
    assert runs[0][-1].row == runs[1][-1].row


def pretraining_task(ranks):
    seed_everything(0)
    encoder = build_backbone(
        image_size=32,
        patch_size=8,
        width=16,
        depth=1,
        heads=2,
        mlp_ratio=2,
        qkv_bias=True,
        layer_scale=None,
        absolute_positions=True,
        dropout=0.0,
        drop_path=0.0,
        final_norm=True,
    )
    model = MaskedFrequencyModel(
        encoder, size=32, radius=4, outer_radius=999, gamma=1.0, only_missing=True
    )
    return PretrainingTask(model, shown=torch.zeros(1), folder=Path(), ranks=ranks)


def contrastive_task(ranks):
    seed_everything(0)
    return ContrastiveTask(tiny_model(), [], margin=None, device=DEVICE, ranks=ranks)


def few_steps(make, ranks):
    """Return the losses and final weights of four steps on halves or wholes of fixed batches."""
    task = make(ranks)
    optimizer = build_optimizer(task.model, OptimizerSettings())
    stepper = Stepper(
        task,
        optimizer,
        precision="fp32",
        accumulation=2,
        clip_norm=1.0,
        device=DEVICE,
        ranks=ranks,
    )
    stepper.share()
    generator = torch.Generator().manual_seed(0)
    views = (2,) if isinstance(task, ContrastiveTask) else ()
    share = slice(ranks.rank * 4 // ranks.world, (ranks.rank + 1) * 4 // ranks.world)
    losses = []
    for number in range(8):
        images = torch.randint(
            0, 256, (4, *views, 3, 32, 32), dtype=torch.uint8, generator=generator
        )
        # The ranks' shares of the missing bins differ.
        targets = torch.tensor([1, 1, 1, 0]) if number % 3 else torch.tensor([0, 1, 0, 1])
        stepper.add(TrainingBatch(images[share], targets[share], ()), complete=number % 2 == 1)
        if number % 2 == 1:
            losses.append(stepper.finish(1e-3)[0])
    return losses, dict(task.model.state_dict())


def in_rank(rank, port, work, arguments, results):
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with ranks_of_run() as ranks:
        torch.save(work(*arguments, ranks), f"{results}.{rank}")


def on_two_ranks(work, arguments, folder):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = folder / "result"
    processes = [
        context.Process(target=in_rank, args=(rank, port, work, arguments, results))
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(f"{results}.{rank}", weights_only=False) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("make", [pretraining_task, contrastive_task])
def test_two_ranks_make_the_steps_of_one(tmp_path, make):
    losses, weights = few_steps(make, Ranks())
    for rank_losses, rank_weights in on_two_ranks(few_steps, (make,), tmp_path):
        assert_close(rank_losses, losses, atol=1e-5, rtol=0)
        assert_close(rank_weights, weights, atol=1e-4, rtol=0)


def toy_losses(source, path, batch_size, ranks):
    off = {"MODEL.SID_DROPOUT": 0.0, "MODEL.DROP_PATH_RATE": 0.0, "DATA.BATCH_SIZE": batch_size}
    settings = FitSettings(epochs=2)
    events = list(toy_fit(source, path, settings=settings, overrides=off, ranks=ranks))
    steps = [event.loss for event in events if isinstance(event, StepDone)]
    return steps, [event.row for event in events if isinstance(event, EpochDone)]


@pytest.mark.slow
def test_two_ranks_train_and_validate_as_one(tmp_path):
    source = write_images(tmp_path / "images")
    losses, rows = toy_losses(source, tmp_path / "one", 4, Ranks())
    for rank_losses, rank_rows in on_two_ranks(toy_losses, (source, tmp_path / "two", 2), tmp_path):
        assert_close(rank_losses, losses, atol=1e-5, rtol=0)
        for rank_row, row in zip(rank_rows, rows, strict=True):
            assert_close(list(rank_row.values()), list(row.values()), atol=1e-4, rtol=0)
    assert read_pickle(tmp_path / "two/last.pt")["progress"]["step"] == len(losses)
