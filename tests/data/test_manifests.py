"""The CSVs of known layouts list the right files, in order, or say what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spai.data.images import EXTENSIONS
from spai.data.manifests import (
    IMAGE_SUFFIXES,
    PROMPTS_COLUMN,
    directory_samples,
    draw_samples,
    find_images,
    format_counts,
    ldm_samples,
    synthbuster_samples,
)
from spai.data.tables import Sample


def touch(root: Path, *names: str) -> None:
    """Make empty files: the builders never open an image."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode())


def below(root: Path, samples: list[Sample]) -> list[str]:
    return [sample.path.relative_to(root).as_posix() for sample in samples]


def named(root: Path, samples: list[Sample]) -> list[tuple[str, Sample]]:
    return list(zip(below(root, samples), samples, strict=True))


LDM_FAKES = [
    "latent_diffusion_class2image/latent-diffusion_class2img-imagenet_class-7_000012.png",
    "latent_diffusion_noise2image_FFHQ/guided-diffusion_noise2img-ffhq256_sample_00000003.png",
    "latent_diffusion_text2img_set0/latent-diffusion_text2img_cocotrain2017_411.png",
]


@pytest.fixture(params=["val", "valid"])
def ldm(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The unpacked training set, with its validation folder under either name."""
    for folder in ("train", request.param):
        base = tmp_path / "ldm" / folder
        touch(base, *LDM_FAKES, "real_coco/left_out.png", "real_lsun/left_out.png")
        touch(base, "latent_diffusion_class2image/._hidden.png", "notes.txt")
    coco = "\ufeff 000000000030.jpg \n\n000000000009.jpg\r\n"
    write(tmp_path / "ldm/train/real_coco.txt", coco)
    write(tmp_path / f"ldm/{request.param}/real_coco.txt", "000000000025.jpg\n")
    write(tmp_path / "ldm/train/real_lsun.txt", "tvmonitor_00_1.png\nairplane_0002.png\n")
    write(tmp_path / f"ldm/{request.param}/real_lsun.txt", "airplane_0003.png")
    touch(tmp_path / "COCO/train2017", *(f"{i:012d}.jpg" for i in (9, 25, 30)))
    touch(tmp_path / "lsun/train/airplane/0_real", "0002.png", "0003.png")
    touch(tmp_path / "lsun/train/tvmonitor/0_real", "00_1.png")
    return tmp_path


def list_ldm(root: Path, **options: object) -> list[Sample]:
    return ldm_samples(
        {"train": root / "ldm/train", "val": root / "ldm/val"},
        coco_dir=root / "COCO",
        lsun_dir=root / "lsun",
        **options,  # type: ignore[arg-type]
    )


def test_ldm_lists_fakes_then_coco_then_lsun_of_each_split_in_sorted_order(ldm: Path) -> None:
    samples = list_ldm(ldm)

    assert below(ldm, samples)[:7] == [
        *(f"ldm/train/{name}" for name in LDM_FAKES),
        "COCO/train2017/000000000009.jpg",
        "COCO/train2017/000000000030.jpg",
        "lsun/train/airplane/0_real/0002.png",
        "lsun/train/tvmonitor/0_real/00_1.png",
    ]
    assert [sample.label for sample in samples] == [1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert [sample.split for sample in samples] == ["train"] * 7 + ["val"] * 5
    assert below(ldm, samples)[-2:] == [
        "COCO/train2017/000000000025.jpg",  # train2017 for both splits
        "lsun/train/airplane/0_real/0003.png",
    ]


def test_ldm_stops_at_missing_reals_with_their_number_and_the_first_ten(ldm: Path) -> None:
    write(ldm / "ldm/train/real_coco.txt", "".join(f"{i:012d}.jpg\n" for i in range(100, 112)))

    with pytest.raises(ValueError, match="12 real files are missing") as caught:
        list_ldm(ldm)

    assert "000000000109.jpg" in str(caught.value)
    assert "000000000110.jpg" not in str(caught.value)
    assert "--missing skip" in str(caught.value)


def test_ldm_leaves_missing_reals_out_and_says_so_when_asked(
    ldm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (ldm / "COCO/train2017/000000000009.jpg").unlink()

    samples = list_ldm(ldm, missing="skip")
    assert len(samples) == 11
    assert "COCO/train2017/000000000009.jpg" not in below(ldm, samples)
    assert "left out: 1 real files" in caplog.text


def test_ldm_filter_keeps_matching_fakes_and_all_reals(ldm: Path) -> None:
    samples = list_ldm(ldm, names=["latent_diffusion_noise2image_FFHQ"])
    fakes = [sample for sample in samples if sample.label == 1]
    assert {sample.source for sample in fakes} == {"latent_diffusion_noise2image_FFHQ"}
    assert [sample.split for sample in fakes] == ["train", "val"]
    assert len(samples) - len(fakes) == 6


def test_filters_match_whole_components_and_a_misspelt_one_is_an_error(ldm: Path) -> None:
    with pytest.raises(ValueError, match=r"filter \['FFHQ'\]"):
        list_ldm(ldm, names=["FFHQ", "latent_diffusion_class2image"])


def test_a_line_without_category_names_the_list_and_the_line(ldm: Path) -> None:
    write(ldm / "ldm/train/real_lsun.txt", "airplane.png\n")
    with pytest.raises(ValueError, match=r"real_lsun.txt: 'airplane.png'"):
        list_ldm(ldm)


def test_missing_folders_and_lists_are_named(ldm: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        ldm_samples({"train": ldm / "nowhere"}, coco_dir=ldm, lsun_dir=ldm)
    with pytest.raises(ValueError, match=r"other.txt: no such file"):
        list_ldm(ldm, real_coco_filename="other.txt")


def test_both_tree_styles_give_labels(tmp_path: Path) -> None:
    touch(tmp_path / "progan/airplane", "0_real/1.png", "1_fake/2.PNG", "1_fake/readme.txt")
    touch(tmp_path / "bench", "sdxl/real/a b.jpeg", "sdxl/fake/deep/er/c.webp")

    folders = {"train": [tmp_path / "progan"], "test": [tmp_path / "bench"], "val": []}
    samples = directory_samples(folders)
    found = [(name, s.label, s.split) for name, s in named(tmp_path, samples)]
    assert found == [
        ("progan/airplane/0_real/1.png", 0, "train"),
        ("progan/airplane/1_fake/2.PNG", 1, "train"),
        ("bench/sdxl/fake/deep/er/c.webp", 1, "test"),
        ("bench/sdxl/real/a b.jpeg", 0, "test"),
    ]


def test_the_given_folder_itself_may_be_the_label(tmp_path: Path) -> None:
    touch(tmp_path, "1_fake/x.png")
    assert directory_samples({"test": [tmp_path / "1_fake"]})[0].label == 1


@pytest.mark.parametrize(
    "name",
    [
        "COCO/test2017/000000113339.jpg",
        "ImageNet/ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG",
        "FODB/D01_Samsung_GalaxyS6_1/facebook/D01_img_facebook_0001.jpg",
        "stable-diffusion-3/cfg_30/euler/steps_15/000000001_0.webp",
    ],
)
def test_a_given_label_serves_layouts_without_one(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    folders = {"test": [tmp_path / name.split("/")[0]]}
    found = directory_samples(folders, label=0, names=[name.split("/")[-2]])
    assert [(s.path, s.label) for s in found] == [(tmp_path / name, 0)]


@pytest.mark.parametrize("name", ["plain/x.png", "real/1_fake/x.png", "unreal/x.png"])
def test_files_without_one_clear_label_are_named(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    with pytest.raises(ValueError, match=name):
        directory_samples({"test": [tmp_path]})


def test_a_file_cannot_be_in_two_splits(tmp_path: Path) -> None:
    touch(tmp_path, "a/0_real/x.png")
    with pytest.raises(ValueError, match="x.png: listed twice"):
        directory_samples({"train": [tmp_path], "val": [tmp_path / "a"]})


def test_folders_are_searched_without_hidden_files_and_linked_folders(tmp_path: Path) -> None:
    touch(tmp_path / "set", "b.png", "a/c.tif", ".cache/d.png", "._b.png")
    touch(tmp_path / "elsewhere", "e.png")
    (tmp_path / "set/folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/file.png").symlink_to(tmp_path / "elsewhere/e.png")
    os.mkfifo(tmp_path / "set/pipe.png")

    found = [
        path.relative_to(tmp_path / "set").as_posix() for path in find_images(tmp_path / "set")
    ]

    assert found == ["a/c.tif", "b.png", "file.png"]


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image below"):
        find_images(tmp_path)


@pytest.fixture
def synthbuster(tmp_path: Path) -> Path:
    stems = ["r1f8a4c62t", "r000da54ft"]
    for generator in ("dalle3", "stable-diffusion-1-3"):
        touch(tmp_path / "synthbuster" / generator, *(f"{stem}.png" for stem in stems))
    lines = [f'{stem},"a prompt, with a comma"' for stem in stems]
    write(
        tmp_path / "synthbuster/prompts.csv",
        "\n".join([f"\ufeff{PROMPTS_COLUMN},prompt", *lines, ""]),
    )
    touch(tmp_path / "RAISE-1k/tiff", *(f"{stem}.tif" for stem in stems))
    return tmp_path


def test_synthbuster_lists_pngs_as_fake_and_raise_tiffs_as_real(synthbuster: Path) -> None:
    samples = synthbuster_samples(synthbuster / "synthbuster", synthbuster / "RAISE-1k")

    assert [(name, s.label) for name, s in named(synthbuster, samples)] == [
        ("synthbuster/dalle3/r000da54ft.png", 1),
        ("synthbuster/dalle3/r1f8a4c62t.png", 1),
        ("synthbuster/stable-diffusion-1-3/r000da54ft.png", 1),
        ("synthbuster/stable-diffusion-1-3/r1f8a4c62t.png", 1),
        ("RAISE-1k/tiff/r000da54ft.tif", 0),
        ("RAISE-1k/tiff/r1f8a4c62t.tif", 0),
    ]
    assert {sample.split for sample in samples} == {"test"}


def test_synthbuster_filter_picks_generators(synthbuster: Path) -> None:
    folder = synthbuster / "synthbuster"
    both = synthbuster_samples(folder, synthbuster / "RAISE-1k", names=["dalle3"])
    assert [sample.source for sample in both] == ["dalle3", "dalle3", "raise", "raise"]
    assert len(synthbuster_samples(folder, None, names=["dalle3"])) == 2


def test_synthbuster_missing_tiffs_stop_or_are_left_out(synthbuster: Path) -> None:
    (synthbuster / "RAISE-1k/tiff/r000da54ft.tif").unlink()
    folders = synthbuster / "synthbuster", synthbuster / "RAISE-1k"
    with pytest.raises(ValueError, match="1 real files are missing"):
        synthbuster_samples(*folders)
    assert len(synthbuster_samples(*folders, missing="skip")) == 5


def test_a_prompts_file_without_the_column_lists_its_columns(synthbuster: Path) -> None:
    write(synthbuster / "synthbuster/prompts.csv", "name,prompt\na,b\n")
    with pytest.raises(ValueError, match=r"\['name', 'prompt'\]"):
        synthbuster_samples(synthbuster / "synthbuster", synthbuster / "RAISE-1k")


POOL = [
    Sample(Path(f"{split}/{label}/{i}.png"), label, split)
    for split in ("train", "val")
    for label in (1, 0)
    for i in range(30)
]


def test_draws_repeat_with_the_seed_and_take_n_of_each_class_and_split() -> None:
    drawn = draw_samples(POOL, 5, seed=3)
    assert drawn == draw_samples(POOL, 5, seed=3)
    assert drawn != draw_samples(POOL, 5, seed=4)
    assert drawn == sorted(drawn, key=POOL.index)
    for split in ("train", "val"):
        for label in (0, 1):
            assert sum((s.split, s.label) == (split, label) for s in drawn) == 5


def test_a_draw_of_too_few_takes_all_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert draw_samples(POOL[:10], 20) == POOL[:10]
    assert "only 10" in caplog.text
    with pytest.raises(ValueError, match="at least 1"):
        draw_samples(POOL, 0)


def test_counts_are_given_per_split_class_and_source(ldm: Path) -> None:
    table = [line.split() for line in format_counts(list_ldm(ldm)).splitlines()]
    assert ["train", "generated", "1", "latent_diffusion_class2image"] in table
    assert ["train", "real", "2", "coco"] in table
    assert table[-1] == ["all", "12"]


def test_every_listed_extension_is_one_that_the_loader_reads() -> None:
    assert IMAGE_SUFFIXES <= EXTENSIONS


def test_building_csvs_needs_neither_torch_nor_pandas() -> None:
    code = "import sys, spai.data.manifests; print({'torch', 'pandas'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
