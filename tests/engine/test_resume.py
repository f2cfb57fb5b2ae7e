import multiprocessing
import os
import random
import resource
import signal
import time

import pytest
import torch

from spai.engine.state import random_state, restore_random_state
from spai.engine.train import EpochDone, FitSettings, StepDone
from tests.engine.toy import DEVICE, toy_fit, write_images

SETTINGS = FitSettings(epochs=6, save_every_steps=3, save_all=True)
KILLS = 12


def train(source, path, reports=None, resume=False, settings=SETTINGS):
    torch.set_num_threads(1)
    for event in toy_fit(source, path, settings=settings, resume=resume):
        if reports is not None:
            reports.send_bytes(b"step" if isinstance(event, StepDone) else b"epoch")


def train_and_kill(source, path, rng):
    """Train in a child process and kill it some milliseconds after some steps; 0 when it ended."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=train, args=(source, path, sender, True))
    child.start()
    sender.close()
    try:
        for _ in range(rng.randint(4, 7)):
            receiver.recv_bytes()
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child.pid, signal.SIGKILL)
    except EOFError:
        pass  # it ended first
    child.join()
    return child.exitcode


def state_of(path):
    return torch.load(path, weights_only=True)


def assert_equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key in found:
            assert_equal(found[key], expected[key])
    elif isinstance(found, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b)
    else:
        assert found == expected


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_an_uninterrupted_one(tmp_path):
    source = write_images(tmp_path / "images", train=32)
    threads = torch.get_num_threads()
    try:
        train(source, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    rng = random.Random(0)
    codes = []
    while not codes or codes[-1] != 0:
        codes.append(train_and_kill(source, tmp_path / "killed", rng))
        assert codes[-1] in (0, -signal.SIGKILL)
        assert len(codes) < 100
    assert codes.count(-signal.SIGKILL) >= 10
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (killed / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert_equal(state_of(killed / "last.pt"), state_of(whole / "last.pt"))
    names = [path.name for path in sorted(whole.glob("ckpt_*"))]
    assert names == [path.name for path in sorted(killed.glob("ckpt_*"))]
    for name in names:
        assert_equal(state_of(killed / name), state_of(whole / name))
    assert not list(killed.glob(".*.partial"))


def test_a_run_stopped_in_an_epoch_goes_on_as_if_it_had_not(tmp_path):
    source = write_images(tmp_path / "images")
    whole = FitSettings(epochs=2, accumulation=2)
    list(toy_fit(source, tmp_path / "whole", settings=whole))
    stopped = FitSettings(epochs=2, accumulation=2, max_steps=3)
    events = list(toy_fit(source, tmp_path / "parts", settings=stopped))
    assert sum(isinstance(event, StepDone) for event in events) == 3
    list(toy_fit(source, tmp_path / "parts", settings=whole, resume=True))
    assert_equal(state_of(tmp_path / "parts/last.pt"), state_of(tmp_path / "whole/last.pt"))


def test_a_finished_run_resumed_does_nothing_but_repair_the_table(tmp_path):
    source = write_images(tmp_path / "images")
    settings = FitSettings(epochs=1)
    list(toy_fit(source, tmp_path / "run", settings=settings))
    table = (tmp_path / "run/metrics.csv").read_bytes()
    (tmp_path / "run/metrics.csv").unlink()
    assert list(toy_fit(source, tmp_path / "run", settings=settings, resume=True)) == []
    assert (tmp_path / "run/metrics.csv").read_bytes() == table


def test_half_written_files_are_removed_and_never_loaded(tmp_path):
    source = write_images(tmp_path / "images")
    settings = FitSettings(epochs=1)
    (tmp_path / "run").mkdir()
    partial = tmp_path / "run/.last.pt.123.partial"
    partial.write_bytes(b"half")
    events = list(toy_fit(source, tmp_path / "run", settings=settings, resume=True))
    assert isinstance(events[-1], EpochDone) and not partial.exists()


def test_a_damaged_state_is_named(tmp_path):
    source = write_images(tmp_path / "images")
    settings = FitSettings(epochs=1)
    list(toy_fit(source, tmp_path / "run", settings=settings))
    last = tmp_path / "run/last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last\.pt: .*damaged"):
        list(toy_fit(source, tmp_path / "run", settings=settings, resume=True))


def test_an_earlier_run_is_not_overwritten(tmp_path):
    source = write_images(tmp_path / "images")
    settings = FitSettings(epochs=1, max_steps=1)
    list(toy_fit(source, tmp_path / "run", settings=settings))
    with pytest.raises(ValueError, match="continue it with --resume"):
        list(toy_fit(source, tmp_path / "run", settings=settings))


def test_other_settings_are_named_when_resuming(tmp_path):
    source = write_images(tmp_path / "images")
    list(toy_fit(source, tmp_path / "run", settings=FitSettings(epochs=2, max_steps=1)))
    with pytest.raises(ValueError, match="epochs was 2, now 3"):
        list(toy_fit(source, tmp_path / "run", settings=FitSettings(epochs=3), resume=True))


def fill_disk(source, path, reports):
    """Resume where no file may grow past 20 kB, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        train(source, path, resume=True, settings=FitSettings(epochs=1))
    except Exception as error:
        reports.send(f"{type(error).__name__}: {error}")


def test_a_full_disk_is_one_clear_error_and_keeps_the_previous_file(tmp_path):
    source = write_images(tmp_path / "images")
    settings = FitSettings(epochs=1, max_steps=1)
    list(toy_fit(source, tmp_path / "run", settings=settings))
    before = (tmp_path / "run/last.pt").read_bytes()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=fill_disk, args=(source, tmp_path / "run", sender))
    child.start()
    sender.close()
    message = receiver.recv()
    child.join()
    assert message.startswith("OSError: ") and "cannot be saved" in message
    assert "make room and continue with --resume" in message
    assert (tmp_path / "run/last.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob(".*.partial"))


def test_random_states_are_restored_as_they_were():
    import numpy as np

    state = random_state(DEVICE)
    drawn = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)
    restore_random_state(state, DEVICE)
    again = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)
    assert drawn == again
