from pathlib import Path

import numpy as np
import pytest

from lrai.cli.tensors import decode_tensor, encode_tensor, plain_values, read_array
from lrai.errors import ConfigError

DATATYPES = ("BOOL", "UINT8", "INT16", "INT64", "FP16", "FP32", "FP64")


@pytest.mark.parametrize("datatype", DATATYPES)
def test_numbers_survive_the_wire(datatype: str) -> None:
    array = read_array("[[0, 1], [1, 0]]", datatype, [-1, 2])
    again = decode_tensor(encode_tensor(array, datatype), datatype, array.shape)
    assert again.dtype == array.dtype
    assert again.tolist() == array.tolist()


def test_texts_and_bytes_survive_the_wire() -> None:
    array = np.array([["é", ""], [b"\x00\xff", "x"]], dtype=object)
    again = decode_tensor(encode_tensor(array, "BYTES"), "BYTES", [2, 2])
    assert again.tolist() == [["é".encode(), b""], [b"\x00\xff", b"x"]]
    assert plain_values(again) == ["é", "", "\x00\\xff", "x"]


def test_bf16_keeps_the_upper_half() -> None:
    array = read_array("[1.0, -2.5]", "BF16", [2])
    data = encode_tensor(array, "BF16")
    assert data == b"\x80\x3f\x20\xc0"
    assert decode_tensor(data, "BF16", [2]).tolist() == [1.0, -2.5]


def test_json_answer_is_read_too() -> None:
    assert decode_tensor([1, 2, 3, 4], "INT64", [2, 2]).tolist() == [[1, 2], [3, 4]]


def test_batch_dimension_is_added() -> None:
    assert read_array("[1, 2]", "FP32", [-1, 2]).shape == (1, 2)


def test_files_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 2)))
    (tmp_path / "x.json").write_text("[[1, 1]]")
    for name in ("x.npy", "x.json"):
        array = read_array(str(tmp_path / name), "FP32", [-1, 2])
        assert array.dtype == np.float32
        assert array.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("[[1, 2], [3]]", "is no FP32 tensor"),
        ("one", "is no FP32 tensor"),
        ("absent.npy", "absent.npy cannot be read: No such file"),
    ],
)
def test_bad_input_is_a_sentence(value: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_array(value, "FP32", [-1, 2])


@pytest.mark.parametrize(
    ("datatype", "shape", "expected", "brightest"),
    [
        ("FP32", [-1, 3, 4, 6], (1, 3, 4, 6), 1.0),
        ("UINT8", [-1, 4, 6, 3], (1, 4, 6, 3), 255),
        ("FP32", [1, 1, -1, -1], (1, 1, 10, 20), 1.0),
        ("FP32", [4, 6, 3], (4, 6, 3), 1.0),
    ],
)
def test_image_is_fitted_to_the_model(
    tmp_path: Path, datatype: str, shape: list[int], expected: tuple[int, ...], brightest: float
) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (20, 10), (255, 255, 255)).save(tmp_path / "white.png")
    array = read_array(str(tmp_path / "white.png"), datatype, shape)
    assert array.shape == expected
    assert array.min() == array.max() == brightest


def test_image_for_a_model_without_images_is_refused(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("L", (2, 2)).save(tmp_path / "grey.png")
    with pytest.raises(ConfigError, match=r"wants \[-1, 4\], which is no image"):
        read_array(str(tmp_path / "grey.png"), "FP32", [-1, 4])
