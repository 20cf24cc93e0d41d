"""The lowest latency: a model inside your own process, without any server.

python examples/engine.py
"""

import asyncio
import tempfile
from pathlib import Path

from demo_models import train_digits
from lrai import Engine

TARGET_MS = 1.0


def main() -> None:
    """Train a small model, ask it row by row, and say how long that took."""
    with tempfile.TemporaryDirectory() as folder:
        model = train_digits(Path(folder))
        late: list[float] = []
        engine = Engine(
            Path(folder, "digits/1/model.onnx"),
            target_latency_ms=TARGET_MS,
            on_violation=lambda result: late.append(result.latency_ms),
        )
        with engine:
            right = 0
            for row, expected in zip(model.rows, model.expected, strict=True):
                answer = engine.predict(row[None]).outputs[model.output]
                right += int(answer.argmax() == expected.argmax())
            print(f"{right} of {len(model.rows)} answers equal the trained model's")
            waited = asyncio.run(engine.predict_async({model.input: model.rows[:8]}))
            print(f"8 rows at once, without blocking the event loop: {waited.latency_ms:.3f} ms")
            stats = engine.stats()
            print(f"p50 {stats.p50_ms:.3f} ms, p99 {stats.p99_ms:.3f} ms")
            print(f"{stats.violations} of {stats.count} took longer than {TARGET_MS:g} ms")
            assert len(late) == stats.violations


if __name__ == "__main__":
    main()
