"""Folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contract.config import DataConfig
from contract.errors import DataError
from peerless.data import load
from peerless.data.image_folder import read_image_folder


def paint(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def gray(value: int, height: int = 6, width: int = 4) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


def colour(*rgb: int, height: int = 6, width: int = 4) -> np.ndarray:
    return np.broadcast_to(np.array(rgb, np.uint8), (height, width, 3)).copy()


def test_classes_come_in_the_order_of_their_names(tmp_path):
    paint(tmp_path / "dog" / "1.png", gray(10))
    paint(tmp_path / "cat" / "2.png", gray(30))
    paint(tmp_path / "cat" / "1.png", gray(20))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    dataset = load(DataConfig(source="image-folder", path=tmp_path.name), base=tmp_path.parent)
    assert dataset.names == ("cat", "dog")
    assert dataset.train_x.shape == (3, 1, 6, 4)
    np.testing.assert_array_equal(dataset.train_x[:, 0, 0, 0], [20, 30, 10])
    np.testing.assert_array_equal(dataset.train_y, [0, 0, 1])
    assert dataset.test_x is None


def test_images_in_subfolders_of_a_class_belong_to_it(tmp_path):
    paint(tmp_path / "cat" / "2.png", gray(30))
    paint(tmp_path / "cat" / "1" / "deep" / "9.png", gray(20))
    paint(tmp_path / "cat" / ".thumbnails" / "1.png", gray(1))
    paint(tmp_path / "dog" / "only" / "1.png", gray(10))
    dataset = read_image_folder(tmp_path)
    assert dataset.names == ("cat", "dog")
    np.testing.assert_array_equal(dataset.train_x[:, 0, 0, 0], [20, 30, 10])
    np.testing.assert_array_equal(dataset.train_y, [0, 0, 1])


def test_one_colour_image_makes_all_of_them_colour(tmp_path):
    paint(tmp_path / "a" / "1.png", gray(9))
    paint(tmp_path / "b" / "1.png", colour(1, 2, 3))
    dataset = read_image_folder(tmp_path)
    assert dataset.train_x.shape == (2, 3, 6, 4)
    np.testing.assert_array_equal(dataset.train_x[:, :, 5, 3], [[9, 9, 9], [1, 2, 3]])


def test_mixed_sizes_need_an_image_size(tmp_path):
    paint(tmp_path / "a" / "1.png", gray(9))
    paint(tmp_path / "a" / "2.png", gray(200, 12, 8))
    with pytest.raises(DataError, match=r"2.png has 8 x 12 pixels, but .*1.png has 4 x 6; set data.image_size"):
        read_image_folder(tmp_path)
    dataset = load(DataConfig(source="image-folder", path=str(tmp_path), image_size=5))
    assert dataset.train_x.shape == (2, 1, 5, 5)
    np.testing.assert_array_equal(dataset.train_x[:, 0, 2, 2], [9, 200])


def test_the_test_folder_keeps_the_training_classes(tmp_path):
    for name in ("a", "b", "c"):
        paint(tmp_path / "train" / name / "1.png", gray(1))
    paint(tmp_path / "test" / "c" / "1.png", gray(5))
    dataset = read_image_folder(tmp_path / "train", tmp_path / "test")
    np.testing.assert_array_equal(dataset.test_y, [2])
    paint(tmp_path / "test" / "d" / "1.png", gray(5))
    with pytest.raises(DataError, match=r"test/d is a class that the training folder does not have"):
        read_image_folder(tmp_path / "train", tmp_path / "test")


def test_palette_transparency_and_jpeg_are_read(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(colour(255, 0, 0)).convert("P").save(tmp_path / "a" / "1.gif")
    Image.fromarray(colour(0, 255, 0)).convert("RGBA").save(tmp_path / "a" / "2.PNG")
    Image.fromarray(colour(0, 0, 255)).save(tmp_path / "a" / "3.jpeg", quality=100)
    dataset = read_image_folder(tmp_path)
    np.testing.assert_array_equal(dataset.train_x[:, :, 3, 2].argmax(axis=1), [0, 1, 2])


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_names_a_file_that_is_no_image(tmp_path, content):
    paint(tmp_path / "a" / "1.png", gray(1))
    (tmp_path / "a" / "2.png").write_bytes(content)
    with pytest.raises(DataError, match=r"2.png is not an image"):
        read_image_folder(tmp_path)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp"])
def test_names_a_file_that_is_cut_off(tmp_path, ending):
    paint(tmp_path / "a" / "1.png", gray(1, 64, 64))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = tmp_path / "a" / f"2.{ending}"
    paint(path, noise)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=rf"2.{ending} is damaged"):
        read_image_folder(tmp_path)


def test_refuses_deep_and_enormous_images(tmp_path, monkeypatch):
    paint(tmp_path / "a" / "1.png", np.full((4, 4), 40_000, np.uint16))
    with pytest.raises(DataError, match=r"1.png has more than 8 bits"):
        read_image_folder(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"1.png is not an image that can be read"):
        read_image_folder(tmp_path)


def test_refuses_folders_without_classes_or_images(tmp_path):
    with pytest.raises(DataError, match="is missing"):
        read_image_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no subfolders"):
        read_image_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no image"):
        read_image_folder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="no folder"):
        read_image_folder(tmp_path / "file")
    with pytest.raises(DataError, match=r"data.path is empty"):
        load(DataConfig(source="image-folder"))
