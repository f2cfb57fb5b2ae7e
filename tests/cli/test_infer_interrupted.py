"""`spai infer` killed at random moments, and shared by several processes."""

import contextlib
import csv
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spai.cli import main
from spai.engine import scoring
from tests.recipe import reference_image

KILLS = 20


@pytest.fixture
def many(tmp_path):
    """Return a folder of 80 images of 1 to 12 patches."""
    folder = tmp_path / "many"
    folder.mkdir()
    sizes = random.Random(0)
    for seed in range(80):
        height, width = sizes.randint(50, 700), sizes.randint(50, 900)
        Image.fromarray(reference_image(height, width, seed)).save(folder / f"{seed}.png")
    (folder / "broken.png").write_bytes(b"broken")
    return folder


def fork_infer(arguments, journal):
    """Start `spai infer` in a fork of this process, which has torch loaded; return its pid.

    The name of each image that went through the model is appended to `journal`.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)  # OpenMP threads do not survive a fork
        original = scoring.to_row

        def recording(prediction, columns):
            with journal.open("a") as file:
                file.write(f"{prediction.record.name}\n")
            return original(prediction, columns)

        scoring.to_row = recording
        with contextlib.redirect_stderr(io.StringIO()):
            main(["infer", *map(str, arguments)], standalone_mode=False)
        code = 0
    finally:
        os._exit(code)


def complete_rows(partial):
    if not partial.exists():
        return []
    with partial.open(newline="") as file:
        return [row for row in csv.reader(file) if len(row) == 7][1:]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_random_moments_nothing_is_lost_or_scored_twice(
    many, tiny_model, tmp_path, workers
):
    arguments = ("--input", many, "--model", tiny_model, "--device", "cpu", "--workers", workers)
    whole, journal = tmp_path / "whole", tmp_path / "journal"
    started = time.monotonic()
    os.waitpid(fork_infer((*arguments, "--output", whole), journal), 0)
    duration = time.monotonic() - started
    moments, kills = random.Random(workers), 0
    while kills < KILLS:  # more than one run, should one be finished before
        journal.unlink()
        out, kills_of_run = tmp_path / f"out{kills}", 0
        while not (out / "many.csv").exists():
            earlier = complete_rows(out / "many.csv.partial")
            pid = fork_infer((*arguments, "--output", out, "--resume"), journal)
            time.sleep(moments.uniform(0.05, 0.25) * duration)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status) or status == 0
            kills_of_run += os.WIFSIGNALED(status)
            rows = complete_rows(out / "many.csv.partial")
            if not (out / "many.csv").exists():
                scored = [row for row in earlier if row[3] == ""]  # errors are tried again
                assert [row for row in scored if row not in rows] == []
        _, status = os.waitpid(fork_infer((*arguments, "--output", out, "--resume"), journal), 0)
        assert status == 0
        assert (out / "many.csv").read_bytes() == (whole / "many.csv").read_bytes()
        times = Counter(journal.read_text().split())
        del times["broken.png"]
        assert len(times) == 80
        assert sum(times.values()) - 80 <= kills_of_run  # the row that was being written
        assert {path.name for path in out.iterdir()} == {"many.csv", "many.run.json"}
        kills += kills_of_run


def torchrun(processes, arguments, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "-m", "spai", *map(str, arguments)),
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_write_one_file_with_the_same_scores(many, tiny_model, tmp_path):
    arguments = ("infer", "--input", many, "--model", tiny_model, "--device", "cpu")
    journal = tmp_path / "journal"
    os.waitpid(fork_infer((*arguments[1:], "--output", tmp_path / "one"), journal), 0)
    result = torchrun(2, (*arguments, "--output", tmp_path / "two"), tmp_path)
    assert result.returncode == 0, result.stderr
    tables = []
    for name in ("one", "two"):
        with (tmp_path / name / "many.csv").open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    one, two = tables
    assert [row["image"] for row in one] == [row["image"] for row in two]
    assert [row["spai_error"] for row in one] == [row["spai_error"] for row in two]
    np.testing.assert_allclose(
        [float(row["spai"] or "nan") for row in one],
        [float(row["spai"] or "nan") for row in two],
        rtol=0,
        atol=1e-6,
    )
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"many.csv", "many.run.json"}
