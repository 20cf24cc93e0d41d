"""Ask a server with nothing but the standard library.

lrai serve examples/python_backend
python examples/http_json.py
"""

import json
import sys
import urllib.error
import urllib.request


def infer(server: str, model: str, inputs: list[dict[str, object]]) -> dict[str, list[object]]:
    """Send one request; return the data of each output by its name."""
    request = urllib.request.Request(
        f"{server}/v2/models/{model}/infer",
        data=json.dumps({"inputs": inputs}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        answer = json.load(response)
    return {output["name"]: output["data"] for output in answer["outputs"]}


def main() -> None:
    """Ask for two texts, then send one that the model refuses."""
    server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    texts = ["fast and safe", "slow and wrong"]
    tensor: dict[str, object] = {"name": "text", "datatype": "BYTES", "shape": [2], "data": texts}
    answer = infer(server, "polarity", [tensor])
    for text, label, score in zip(texts, answer["label"], answer["score"], strict=True):
        print(f"{text!r} is {label} ({score})")
    try:
        infer(server, "polarity", [{**tensor, "shape": [1], "data": [" "]}])
    except urllib.error.HTTPError as error:
        print(f"refused with status {error.code}: {json.load(error)['error']}")


if __name__ == "__main__":
    main()
