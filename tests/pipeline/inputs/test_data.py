"""Properties of the data: exact samples by position, disjoint splits, clear refusals."""

import hashlib
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.augment import random_crop_flip
from mfac_compress.pipeline.inputs.data import load_data
from mfac_compress.pipeline.recipe.schema import (
    ArraysData,
    Augment,
    DigitsData,
    FactoryData,
    ImageFolderData,
)

SPLITS = ("calibration", "recovery", "validation")


def arrays(splits, **options):
    return ArraysData.model_validate({"source": "arrays", "splits": splits, **options})


def refusal(section, folder, *, needs_recovery=True):
    with pytest.raises(InputError) as caught:
        load_data(section, folder=folder, needs_recovery=needs_recovery)
    return str(caught.value)


def everything(split, **options):
    parts = list(split.batches(7, **options))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


@pytest.fixture
def images(tmp_path):
    """60 random images and their classes, in one file, rows 0..20, 20..40, 40..60."""
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (60, 6, 4, 3), dtype=np.uint8)
    y = random.integers(0, 5, 60).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=x, y=y)
    return x, y


def thirds(path="images.npz"):
    return {name: {"path": path, "rows": [20 * i, 20 * i + 20]} for i, name in enumerate(SPLITS)}


def test_digits_are_images_in_0_to_1_with_integer_classes(tmp_path):
    data = load_data(DigitsData(source="digits"), folder=tmp_path, needs_recovery=True)
    assert [len(split) for split in data] == [600, 600, 597]
    x, y = everything(data.validation)
    assert x.shape == (597, 1, 8, 8)
    assert x.dtype == torch.float32
    assert (float(x.min()), float(x.max())) == (0, 1)
    assert y.dtype == torch.int64
    assert set(y.tolist()) == set(range(10))


def test_the_digits_are_those_of_scikit_learn(tmp_path):
    # SHA-256 over load_digits().images and .target, as bytes.
    expected = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    splits = load_data(DigitsData(source="digits"), folder=tmp_path, needs_recovery=True)
    x, y = (torch.cat(parts) for parts in zip(*map(everything, splits), strict=True))
    found = (x * 16).byte().numpy().tobytes() + y.byte().numpy().tobytes()
    assert hashlib.sha256(found).hexdigest() == expected


def test_splits_may_have_arrays_of_their_own_in_one_file(images, tmp_path):
    x, y = images
    np.savez(tmp_path / "both.npz", train_x=x[:40], train_y=y[:40], test_x=x[40:], test_y=y[40:])
    train = {"path": "both.npz", "y": "train_y"}
    splits = {
        "calibration": {**train, "rows": [0, 20]},
        "recovery": {**train, "rows": [20, 40]},
        "validation": {"path": "both.npz", "x": "test_x", "y": "test_y"},
    }
    data = load_data(arrays(splits, x="train_x"), folder=tmp_path, needs_recovery=True)
    for split, start in zip(data, (0, 20, 40), strict=True):
        inputs, targets = everything(split)
        np.testing.assert_array_equal(inputs.numpy(), x[start : start + 20])
        np.testing.assert_array_equal(targets.numpy(), y[start : start + 20])


def test_a_list_of_arrays_has_the_same_names_in_each_split(tmp_path):
    splits = {name: {"path": f"{name}.npz"} for name in SPLITS}
    splits["validation"]["x"] = "other"
    with pytest.raises(ValidationError, match=r"splits\.validation\.x.* must be left out"):
        arrays(splits, x=["input_ids", "attention_mask"])


def test_batches_are_the_asked_positions_in_order(images, tmp_path):
    x, y = images
    section = arrays(thirds(), layout="NHWC", divide_by=255, mean=[0.5, 0.4, 0.3], std=[0.2])
    data = load_data(section, folder=tmp_path, needs_recovery=True)
    expected = (x.transpose(0, 3, 1, 2) / 255 - np.reshape([0.5, 0.4, 0.3], (3, 1, 1))) / 0.2
    for asked in ([3, 0, 17, 3], torch.tensor([3, 0, 17, 3])):
        got_x, got_y = everything(data.recovery, indices=asked)
        assert np.allclose(got_x, expected[[23, 20, 37, 23]], atol=1e-6)
        assert got_y.tolist() == y[[23, 20, 37, 23]].tolist()
    assert [len(b) for b, _ in data.recovery.batches(8)] == [8, 8, 4]


def test_shuffling_visits_each_sample_once_and_repeats_with_the_seed(images, tmp_path):
    split = load_data(arrays(thirds()), folder=tmp_path, needs_recovery=True).recovery
    orders = [
        everything(split, shuffle=True, generator=torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    plain, _ = everything(split)
    assert {row.numpy().tobytes() for row in orders[0]} == {r.numpy().tobytes() for r in plain}
    with pytest.raises(ValueError, match="generator"):
        split.batches(4, shuffle=True)


def test_recovery_is_opened_only_where_it_is_needed(images, tmp_path):
    splits = {**thirds(), "recovery": {"path": "gone.npz"}}
    assert load_data(arrays(splits), folder=tmp_path, needs_recovery=False).recovery is None
    assert "data.splits.recovery.path" in refusal(arrays(splits), tmp_path)
    del splits["recovery"]
    assert "where the recipe trains" in refusal(arrays(splits), tmp_path)


def test_a_folder_of_npy_files_gives_the_same_as_an_npz(images, tmp_path):
    x, y = images
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "x.npy", x)
    np.save(tmp_path / "npy" / "y.npy", y)
    one = load_data(arrays(thirds()), folder=tmp_path, needs_recovery=True)
    other = load_data(arrays(thirds("npy")), folder=tmp_path, needs_recovery=True)
    assert torch.equal(everything(one.recovery)[0], everything(other.recovery)[0])
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    ("stored", "given"), [("f8", torch.float32), (">f4", torch.float32), ("u2", torch.int64)]
)
def test_targets_are_classes_or_float32(stored, given, tmp_path):
    x = np.arange(12.0).reshape(6, 2)
    np.savez(tmp_path / "a.npz", inputs=x, labels=np.arange(6).astype(stored))
    splits = {n: {"path": "a.npz", "rows": [2 * i, 2 * i + 2]} for i, n in enumerate(SPLITS)}
    section = arrays(splits, x="inputs", y="labels", mean=[1], std=[2])
    got_x, y = everything(load_data(section, folder=tmp_path, needs_recovery=True).validation)
    assert y.dtype == given
    assert y.tolist() == [4, 5]
    assert got_x.dtype == torch.float32
    assert torch.equal(got_x, torch.tensor([[3.5, 4], [4.5, 5]]))


@pytest.mark.parametrize(
    ("change", "options", "part"),
    [
        ({}, {"x": "pixels"}, "has x, y. Name the arrays with data.x"),
        ({"y": np.zeros(59)}, {}, "60 of 'x' and 59 of 'y' rows"),
        ({"y": np.array(["a"] * 60)}, {}, "real numbers"),
        ({"y": np.array([None] * 60)}, {}, "numbers only"),
        ({"x": np.zeros((60, 4))}, {"layout": "NHWC"}, "data.layout NHWC"),
        ({}, {"mean": [1, 2, 3]}, "data.mean must have one number, or one per channel (6"),
        ({}, {"layout": "NHWC", "std": [1, 2]}, "data.std must have one number"),
        (
            {"x": np.full((60, 2), np.nan)},
            {},
            "NaN or Inf in 20 samples, the first row 0 of images.npz, row 1",
        ),
        ({"y": np.full(60, np.inf)}, {}, "finite targets"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, options, part, images, tmp_path):
    x, y = images
    np.savez(tmp_path / "images.npz", **{"x": x, "y": y, **change})
    message = refusal(arrays(thirds(), **options), tmp_path)
    assert part in message
    assert "data." in message


def test_files_that_are_no_arrays_are_refused(images, tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "single.npy", images[0])
    whole = (tmp_path / "images.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for path, part in {
        "text.npz": "cannot be read",
        "cut.npz": "cannot be read",
        "empty": "has none",
        "single.npy": "Give its folder",
        "gone.npz": "exists",
    }.items():
        message = refusal(arrays(thirds(path)), tmp_path)
        assert part in message
        assert "data.splits.calibration.path" in message


@pytest.mark.parametrize(
    ("stored", "options", "given"),
    [
        ("i8", {}, torch.int64),
        ("i4", {}, torch.int64),
        ("u4", {}, torch.int64),
        ("i2", {}, torch.float32),
        ("u1", {}, torch.float32),
        ("?", {}, torch.float32),
        ("f8", {}, torch.float32),
        ("i8", {"divide_by": 2}, torch.float32),
        ("i8", {"mean": [1]}, torch.float32),
        ("i8", {"dtype": "float32"}, torch.float32),
        ("u1", {"dtype": "int64"}, torch.int64),
    ],
)
def test_integers_stay_integers_where_nothing_is_done_to_them(stored, options, given, tmp_path):
    x = np.arange(12).reshape(6, 2).astype(stored)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(6))
    splits = {n: {"path": "a.npz", "rows": [2 * i, 2 * i + 2]} for i, n in enumerate(SPLITS)}
    section = arrays(splits, max_overlap=6, **options)
    got, _ = everything(load_data(section, folder=tmp_path, needs_recovery=True).validation)
    assert got.dtype == given
    if not options.keys() & {"divide_by", "mean"}:
        assert got.tolist() == x[4:].tolist()


def test_integers_are_not_made_of_floats(images, tmp_path):
    np.savez(tmp_path / "images.npz", x=images[0] / 255, y=images[1])
    assert "data.dtype int64 needs" in refusal(arrays(thirds(), dtype="int64"), tmp_path)


@pytest.mark.parametrize("options", [{"divide_by": 2}, {"augment": {"flip": True}}, {"std": [2]}])
def test_integers_are_not_changed_by_the_recipe(options):
    with pytest.raises(ValidationError, match="dtype must be float32 or auto"):
        arrays(thirds(), dtype="int64", **options)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"x": np.full((60, 2), 1e300)}, "finite inputs, within what float32 holds"),
        ({"y": np.full(60, 1e300)}, "finite targets, within what float32 holds"),
        ({"x": np.full((60, 2), 2**63, dtype=np.uint64)}, "inputs of at most 2^63 - 1"),
        ({"y": np.full(60, 2**63, dtype=np.uint64)}, "targets of at most 2^63 - 1"),
    ],
)
def test_numbers_that_the_model_cannot_be_given_are_refused(change, part, images, tmp_path):
    np.savez(tmp_path / "images.npz", **{"x": images[0], "y": images[1], **change})
    assert part in refusal(arrays(thirds()), tmp_path)


def test_a_mapped_array_that_changes_while_it_is_used_is_refused(images, tmp_path):
    (tmp_path / "npy").mkdir()
    for name, array in zip("xy", images, strict=True):
        np.save(tmp_path / "npy" / f"{name}.npy", array)
    data = load_data(arrays(thirds("npy")), folder=tmp_path, needs_recovery=True)
    everything(data.validation)
    changed = np.load(tmp_path / "npy" / "x.npy", mmap_mode="r+")
    changed[45] += 1
    changed.flush()
    with pytest.raises(InputError, match=r"must stay the same.*row 45 of npy"):
        everything(data.validation)


def test_the_samples_to_try_hold_the_smallest_and_largest_numbers(tmp_path):
    x, y = np.full((30, 4), 5), np.full(30, 1)
    x[17, 2], x[23, 0], y[11], y[29] = 99, -1, 7, 0
    x[:, 3] = np.arange(30)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x=-x, y=y)
    splits = {"calibration": {"path": "b.npz"}, "validation": {"path": "a.npz"}}
    data = load_data(arrays(splits), folder=tmp_path, needs_recovery=False)
    assert data.validation.to_try == [0, 1, 23, 17, 29, 11]


def test_pixels_are_no_numbers_of_things(images, tmp_path):
    x, y = images
    x[47], x[53], y[40:] = 0, 255, 3
    np.savez(tmp_path / "images.npz", x=x, y=y)
    data = load_data(arrays(thirds()), folder=tmp_path, needs_recovery=True)
    assert data.validation.to_try == [0, 1]


def test_rows_beyond_the_file_are_refused(images, tmp_path):
    splits = {**thirds(), "validation": {"path": "images.npz", "rows": [40, 61]}}
    message = refusal(arrays(splits), tmp_path)
    assert "data.splits.validation.rows" in message
    assert "[40, 61]" in message


@pytest.fixture
def overlapping(images, tmp_path):
    """Another file, in which rows 3 and 5 are rows 41 and 40 of the first."""
    x, y = images
    others = 255 - x[:10]
    others[3], others[5] = x[41], x[40]
    np.savez(tmp_path / "others.npz", x=others, y=y[:10])
    return {**thirds(), "calibration": {"path": "others.npz"}}


def test_samples_in_two_splits_are_refused_by_content(overlapping, tmp_path):
    message = refusal(arrays(overlapping), tmp_path)
    assert "calibration and validation share 2 samples" in message
    assert "calibration sample 3 (row 3 of others.npz) = validation sample 1 (row 41 of" in message
    assert "data.max_overlap" in message
    refusal(arrays(overlapping, max_overlap=1), tmp_path)
    load_data(arrays(overlapping, max_overlap=2), folder=tmp_path, needs_recovery=True)


def test_shared_samples_that_are_allowed_are_counted(overlapping, tmp_path):
    data = load_data(arrays(overlapping, max_overlap=9), folder=tmp_path, needs_recovery=True)
    assert data.overlap == {("calibration", "validation"): 2}
    data = load_data(arrays(thirds()), folder=tmp_path, needs_recovery=True)
    assert data.overlap == data.repeats == {}


def test_a_sample_that_repeats_counts_as_often_as_it_is_there(images, tmp_path):
    x, y = images
    x[41:50] = x[3]
    np.savez(tmp_path / "images.npz", x=x, y=y)
    assert "share 9 samples (8 allowed)" in refusal(arrays(thirds(), max_overlap=8), tmp_path)
    data = load_data(arrays(thirds(), max_overlap=9), folder=tmp_path, needs_recovery=True)
    assert data.overlap == {("calibration", "validation"): 9}
    assert data.repeats == {"validation": 8}


_NUMBERS = np.arange(24.0).reshape(6, 4)
_TRUE = np.arange(24).reshape(6, 4) % 5 == 0


@pytest.mark.parametrize(
    ("x", "other"),
    [
        (_NUMBERS, _NUMBERS.astype("f4")),
        (_NUMBERS + 1 / 3, _NUMBERS + 1 / 3 + 1e-12),
        (_NUMBERS * 0.0, _NUMBERS * -0.0),
        (_NUMBERS, np.asfortranarray(_NUMBERS)),
        (_NUMBERS.astype(">i8"), _NUMBERS.astype("<i4")),
        (_NUMBERS.astype("u2"), _NUMBERS.astype("i8")),
        (_TRUE, (_TRUE.astype("u1") * 2).view("?")),
    ],
    ids=["float types", "below float32", "-0", "orders", "integers", "signs", "booleans"],
)
def test_equal_numbers_stored_in_two_ways_are_an_overlap(x, other, tmp_path):
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(6))
    np.savez(tmp_path / "b.npz", x=other, y=np.arange(6))
    splits = {"calibration": {"path": "a.npz"}, "validation": {"path": "b.npz"}}
    assert "share 6 samples" in refusal(arrays(splits), tmp_path, needs_recovery=False)


def test_splits_of_different_form_are_refused(images, tmp_path):
    np.savez(tmp_path / "floats.npz", x=images[0] / 255, y=images[1])
    splits = {**thirds(), "validation": {"path": "floats.npz"}}
    message = refusal(arrays(splits), tmp_path)
    assert "calibration has inputs uint8 [6, 4, 3]" in message
    assert "validation has inputs float32" in message


def test_fingerprints_follow_content_and_preparation_and_nothing_else(images, tmp_path):
    def load(**options):
        return load_data(
            arrays(thirds(), layout="NHWC", **options), folder=tmp_path, needs_recovery=True
        )

    first, again = load(), load(max_overlap=3)
    assert first.fingerprint == again.fingerprint
    assert len({split.fingerprint for split in first}) == 3
    augmented = load(augment={"flip": True})
    assert augmented.calibration.fingerprint == first.calibration.fingerprint
    assert augmented.recovery.fingerprint != first.recovery.fingerprint
    assert load(mean=[1]).calibration.fingerprint != first.calibration.fingerprint
    x, y = images
    y[45] += 1
    np.savez(tmp_path / "images.npz", x=x, y=y)
    changed = load()
    assert changed.validation.fingerprint != first.validation.fingerprint
    assert changed.recovery.fingerprint == first.recovery.fingerprint


def test_every_crop_is_a_window_of_the_black_padded_image_or_its_mirror():
    x = torch.randint(1, 256, (64, 3, 6, 4), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    changed = random_crop_flip(x, augment=Augment(crop=2, flip=True), generator=generator)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    seen = set()
    for image, whole in zip(changed, padded, strict=True):
        windows = {
            (top, left, flip): window.flip(2) if flip else window
            for top in range(5)
            for left in range(5)
            for window in [whole[:, top : top + 6, left : left + 4]]
            for flip in (False, True)
        }
        seen |= {at for at, window in windows.items() if torch.equal(window, image)}
        assert any(torch.equal(window, image) for window in windows.values())
    assert {flip for *_, flip in seen} == {False, True}
    assert {top for top, *_ in seen} == set(range(5)) == {left for _, left, _ in seen}


def test_augmentation_is_for_recovery_on_demand_and_repeats_with_the_seed(images, tmp_path):
    section = arrays(thirds(), layout="NHWC", mean=[-9], augment={"crop": 2, "flip": True})
    data = load_data(section, folder=tmp_path, needs_recovery=True)

    def changed(split, seed):
        generator = torch.Generator().manual_seed(seed)
        return everything(split, augment=True, generator=generator)[0]

    plain, _ = everything(data.recovery)
    assert torch.equal(changed(data.recovery, 1), changed(data.recovery, 1))
    assert not torch.equal(changed(data.recovery, 1), plain)
    # Black before the mean is taken off: the border is 0 + 9, not 0.
    assert float(changed(data.recovery, 1).min()) == 9
    assert torch.equal(changed(data.calibration, 1), everything(data.calibration)[0])


def test_augmenting_what_is_no_image_is_refused():
    with pytest.raises(InputError, match=r"data\.augment"):
        random_crop_flip(torch.zeros(4, 9), augment=Augment(flip=True), generator=None)


@pytest.fixture
def pictures(tmp_path):
    """Three splits of two classes with two 10x8 pictures each."""
    random = np.random.default_rng(0)
    for split in SPLITS:
        for name in ("cat", "ant"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                pixels = random.integers(0, 256, (8, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
            (folder / "notes.txt").write_text("no image")
    return tmp_path


def image_folder(**options):
    splits = {name: {"path": name} for name in SPLITS}
    return ImageFolderData.model_validate({"source": "image_folder", "splits": splits, **options})


def test_pictures_are_decoded_with_classes_in_alphabetical_order(pictures):
    data = load_data(image_folder(mean=[0.5]), folder=pictures, needs_recovery=True)
    x, y = everything(data.validation)
    assert y.tolist() == [0, 0, 1, 1]
    pixels = np.asarray(Image.open(pictures / "validation" / "cat" / "1.png")) / 255 - 0.5
    assert np.allclose(x[3], pixels.transpose(2, 0, 1), atol=1e-6)
    assert "cat/1.png" in data.validation.describe(3)


def test_pictures_need_a_package_of_their_own(pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    for name in ("image_folder", "image_files"):
        monkeypatch.delitem(sys.modules, f"mfac_compress.pipeline.inputs.{name}")
    assert r"pip install 'mfac-compress[images]'" in refusal(image_folder(), pictures)


def test_pictures_are_resized_by_the_shorter_side_and_cut_from_the_middle(pictures):
    section = image_folder(resize=4, crop=4)
    x, _ = everything(load_data(section, folder=pictures, needs_recovery=True).recovery)
    picture = Image.open(pictures / "recovery" / "ant" / "0.png")
    expected = picture.resize((5, 4), Image.Resampling.BILINEAR).crop((0, 0, 4, 4))
    assert np.allclose(x[0], np.asarray(expected).transpose(2, 0, 1) / 255, atol=1e-6)


def test_gray_pictures_become_rgb(pictures):
    Image.new("L", (10, 8), 51).save(pictures / "recovery" / "ant" / "0.png")
    data = load_data(image_folder(), folder=pictures, needs_recovery=True)
    assert torch.allclose(everything(data.recovery)[0][0], torch.full((3, 8, 10), 0.2))


@pytest.mark.parametrize(
    ("damage", "options", "part"),
    [
        (lambda f: (f / "cat" / "1.png").write_text("no"), {}, "recovery/cat/1.png must be an"),
        (lambda f: (f / "cat").rename(f / "dog"), {}, "has cat, dog"),
        (lambda f: [p.unlink() for p in (f / "ant").iterdir()], {}, "recovery/ant has no file"),
        (lambda f: Image.new("RGB", (9, 9)).save(f / "ant" / "2.png"), {}, "is 9x9. Set"),
        (lambda f: None, {"crop": 9}, "data.crop"),
        (lambda f: f.rename(f.parent / "gone"), {}, "data.splits.recovery.path"),
        (
            lambda f: (f / "ant" / "0.png").write_bytes(
                (f.parent / "validation" / "cat" / "0.png").read_bytes()
            ),
            {},
            "recovery and validation share 1 samples",
        ),
    ],
)
def test_broken_picture_folders_are_refused(damage, options, part, pictures):
    damage(pictures / "recovery")
    assert part in refusal(image_folder(**options), pictures)


def test_a_picture_that_is_cut_off_is_refused_before_the_work(pictures):
    file = pictures / "recovery" / "ant" / "1.png"
    file.write_bytes(file.read_bytes()[:-60])
    assert "1.png must be an image" in refusal(image_folder(), pictures)


def test_equal_pictures_in_two_formats_are_an_overlap(pictures):
    with Image.open(pictures / "calibration" / "ant" / "0.png") as picture:
        picture.save(pictures / "validation" / "ant" / "9.bmp")
    message = refusal(image_folder(), pictures)
    assert "calibration and validation share 1 samples" in message
    assert "9.bmp" in message


def test_pictures_that_change_while_they_are_used_are_refused(pictures):
    data = load_data(image_folder(), folder=pictures, needs_recovery=True)
    Image.new("RGB", (10, 8)).save(pictures / "recovery" / "ant" / "1.png")
    with pytest.raises(InputError, match=r"must stay the same.*1\.png"):
        everything(data.recovery)


def test_pictures_of_16_and_8_bits_are_of_one_scale(pictures):
    ramp = np.linspace(0, 65535, 80).reshape(8, 10).round().astype(np.uint16)
    Image.fromarray(ramp).save(pictures / "recovery" / "ant" / "0.png")
    for split in ("calibration", "validation"):
        Image.fromarray(ramp.T.copy().reshape(8, 10)[:, ::-1] // (2 + len(split))).save(
            pictures / split / "ant" / "0.png"
        )
    data = load_data(image_folder(), folder=pictures, needs_recovery=True)
    x, _ = everything(data.recovery)
    assert np.allclose(x[0], ramp / 65535, atol=1e-6)
    with Image.open(pictures / "recovery" / "cat" / "1.png") as picture:
        assert np.allclose(x[3].permute(1, 2, 0), np.asarray(picture) / 255, atol=1e-6)


def test_a_resize_that_would_fill_the_memory_is_refused(pictures):
    Image.new("RGB", (1, 50_000)).save(pictures / "recovery" / "ant" / "0.png")
    assert "data.resize must leave" in refusal(image_folder(resize=224, crop=8), pictures)


def test_a_class_that_links_to_a_folder_around_it_is_refused(pictures):
    (pictures / "recovery" / "dog").symlink_to("/")
    assert "a link to /" in refusal(image_folder(), pictures)


OWN = """
import sys
import torch
from torch.utils.data import IterableDataset, Subset, TensorDataset

def whole(n=30):
    return TensorDataset(torch.arange(n * 2.0).double().view(n, 2), torch.arange(n))

def splits(shared=0):
    return {"calibration": Subset(whole(), range(10)),
            "recovery": Subset(whole(), range(10, 20)),
            "validation": Subset(whole(), range(20 - shared, 30))}

def with_(dataset):
    return {**splits(), "recovery": dataset}

class Stream(IterableDataset):
    def __iter__(self):
        return iter([])

class Raises(Subset):
    def __getitems__(self, positions):
        raise OSError("disk gone")

class Own(Subset):
    def __init__(self, change):
        self.change, self.reading = change, 0
    def __len__(self):
        return 6
    def __getitems__(self, positions):
        self.reading += 1
        return [self.change(torch.full((2,), 500.0 + at), at, self.reading) for at in positions]

def length():
    own = Own(None)
    own.__class__ = type("Ends", (Own,), {"__len__": lambda self: sys.exit(0)})
    return with_(own)

def few():
    own = Own(None)
    own.__class__ = type("Few", (Own,), {"__getitems__": lambda self, positions: []})
    return with_(own)

def noisy(split): return {**splits(), split: Own(lambda x, at, n: (x + n / 9, at))}
def noisy_targets(): return {**splits(), "validation": Own(lambda x, at, n: (x, at + n))}
def noisy_later(): return {**splits(), "validation": Own(lambda x, at, n: (x + (n > 20), at))}
def ends(): return with_(Own(lambda x, at, n: sys.exit(0)))
def wordless(): return with_(Own(lambda x, at, n: (_ for _ in ()).throw(ValueError())))
def nan_target(): return with_(Own(lambda x, at, n: (x, float("nan"))))
def complexes(): return with_(Own(lambda x, at, n: (x + 1j, at)))
def sparse(): return with_(Own(lambda x, at, n: (x.to_sparse(), at)))
def meta(): return with_(Own(lambda x, at, n: (x.to("meta"), at)))
def nothing(): return with_(Own(lambda x, at, n: (x[:0], at)))
def history(): return with_(Own(lambda x, at, n: (x.requires_grad_(), at)))

def stream(): return with_(Stream())
def empty(): return with_([])
def raises(): return with_(Raises(whole(), range(3)))
def no_pairs(): return with_([torch.zeros(2)] * 3)
def ragged(): return with_([(torch.zeros(2), 0), (torch.zeros(3), 0)])
def lists(): return with_([([torch.zeros(2), torch.zeros(1)], 0)])
def nan(): return with_([(torch.tensor([1.0, float("nan")]), 0)])
def missing(): return {k: v for k, v in splits().items() if k != "recovery"}
def misnamed(): return {**splits(), "test": whole()}
def no_dict(): return list(splits().values())
def fails(): raise KeyError("root")
def other_shape(): return with_([(torch.zeros(3), 0)])
"""


def factory(name, **kwargs):
    return FactoryData(factory=f"own.py:{name}", kwargs=kwargs)


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def test_own_datasets_give_their_samples(own):
    data = load_data(factory("splits"), folder=own, needs_recovery=True)
    x, y = everything(data.recovery, indices=[2, 0])
    assert x.dtype == torch.float32
    assert x.tolist() == [[24, 25], [20, 21]]
    assert y.tolist() == [12, 10]
    again = load_data(factory("splits"), folder=own, needs_recovery=True)
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("stream", "map-style"),
        ("empty", "'recovery' is empty"),
        ("raises", "OSError: disk gone (own.py, line"),
        (
            "no_pairs",
            "Sample 0 of 'recovery' is a Tensor, and neither (inputs, targets) nor a dict",
        ),
        ("ragged", "data.collate must pad them"),
        ("lists", "has inputs.0 float32 [2], inputs.1 float32 [1], targets int64 []"),
        ("nan", "NaN or Inf in 1 samples, the first sample 0 of data.factory's 'recovery'"),
        ("missing", "because the recipe trains"),
        ("misnamed", "'test'"),
        ("no_dict", "returned list"),
        ("fails", "KeyError: root"),
        ("other_shape", "one shape and type"),
        ("length", "SystemExit"),
        ("few", "as many samples as it is asked for"),
        ("ends", "SystemExit"),
        ("wordless", "ValueError"),
        ("nan_target", "finite targets"),
        ("complexes", "real numbers"),
        ("sparse", "sparse_coo [1, 2]"),
        ("meta", "dense tensors"),
        ("nothing", "none of them empty"),
        ("noisy_targets", "must stay the same"),
    ],
)
def test_own_datasets_that_cannot_be_used_are_refused(name, part, own):
    message = refusal(factory(name), own)
    assert part in message
    assert "data" in message


def test_own_datasets_that_overlap_are_refused(own):
    message = refusal(factory("splits", shared=4), own)
    assert "recovery and validation share 4 samples" in message
    assert "recovery sample 6" in message


def test_validation_samples_that_change_between_readings_are_refused(own):
    with pytest.raises(InputError, match=r"must stay the same.*sample 0 of data.factory's 'valid"):
        load_data(factory("noisy", split="validation"), folder=own, needs_recovery=True)
    data = load_data(factory("noisy_later"), folder=own, needs_recovery=True)
    readings = (everything(data.validation) for _ in range(20))
    with pytest.raises(InputError, match="must stay the same"):
        list(readings)


def test_other_samples_may_change_and_are_known_to(own):
    data = load_data(factory("noisy", split="recovery"), folder=own, needs_recovery=True)
    everything(data.recovery)
    assert data.unstable == ["recovery"]
    assert load_data(factory("splits"), folder=own, needs_recovery=True).unstable == []


def test_samples_with_a_history_of_gradients_lose_it(own):
    data = load_data(factory("history"), folder=own, needs_recovery=True)
    assert not everything(data.recovery)[0].requires_grad
