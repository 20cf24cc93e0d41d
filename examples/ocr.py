"""Read the words of a picture: a detector finds the lines of text, a recogniser reads them.

pip install --no-deps rapidocr
lrai serve $(python examples/ocr.py --models)
python examples/ocr.py
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFont
from tritonclient.http import InferenceServerClient, InferInput

LINES = ["lrai serve model.onnx", "Every answer counts", "2026 requests per second"]


def models() -> Path:
    """The folder of the installed package that holds the models."""
    spec = find_spec("rapidocr")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("error: rapidocr is not installed. hint: pip install --no-deps rapidocr")
    return Path(spec.submodule_search_locations[0], "models")


def ask(client: InferenceServerClient, model: str, image: Image.Image) -> np.ndarray:
    """Send one image, blue first, scaled to -1..1; return the output for it."""
    pixels = np.asarray(image, np.float32)[:, :, ::-1].transpose(2, 0, 1)[np.newaxis]
    tensor = InferInput("x", list(pixels.shape), "FP32").set_data_from_numpy(pixels / 127.5 - 1)
    answer = client.infer(model, [tensor])
    output: np.ndarray = answer.as_numpy(answer.get_response()["outputs"][0]["name"])[0]
    return output


def cut_lines(image: Image.Image, text: np.ndarray) -> list[Image.Image]:
    """Cut out each line, a little larger than the detector's mark, 48 pixels high."""
    rows, lines = np.flatnonzero(np.diff(text.any(axis=1), prepend=False, append=False)), []
    for top, bottom in rows.reshape(-1, 2).tolist():
        columns, more = np.flatnonzero(text[top:bottom].any(axis=0)), (bottom - top) // 2
        left, right = int(columns[0]) - more, int(columns[-1]) + more
        line = image.crop((left, top - more, right, bottom + more))
        lines.append(line.resize((line.width * 48 // line.height, 48)))
    return lines


if "--models" in sys.argv:
    sys.exit(print(models()))
picture = Image.new("RGB", (640, 320), "white")
for number, line in enumerate(LINES):
    place, font = (40, 40 + 90 * number), ImageFont.load_default(36)
    ImageDraw.Draw(picture).text(place, line, "black", font)
client = InferenceServerClient(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000")
letters = onnx.load(models() / "PP-OCRv6_rec_small.onnx").metadata_props[0].value.split("\n")
for cut in cut_lines(picture, ask(client, "PP-OCRv6_det_small", picture)[0] > 0.3):
    best = ask(client, "PP-OCRv6_rec_small", cut).argmax(axis=1)
    fresh = best[np.diff(best, prepend=-1) != 0]
    print("".join(["", *letters, " "][code] for code in fresh))
