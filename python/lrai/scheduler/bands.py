"""Whether requests of different lengths gain from sharing a batch, although some are padded.

Buckets of about the same length learn together: their batches are scaled to the longest of them.
What padding costs is in the measured times, for batches that are shared and for requests alone.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lrai.scheduler.cost_model import ServiceModel
from lrai.scheduler.observation import ServiceSample


class BandModel:
    """Service times of a ragged model by band of lengths, two bands to an octave."""

    def __init__(self, max_rows: int) -> None:
        """Know nothing; batches have at most `max_rows` rows."""
        self._service = ServiceModel(max_rows)

    def update(self, samples: Iterable[ServiceSample], now_s: float) -> bool:
        """Learn from a tick's batches; return whether predictions have changed at once."""
        return self._service.update(map(_in_band, filter(_has_edge, samples)), now_s)

    def curves(self, now_s: float) -> dict[int, tuple[list[float], float]]:
        """Return for each band, by its upper end, the expected time by rows, and the doubt.

        That is by how much the fixed part of a batch's time may be larger, in seconds. It is below
        0 where larger batches are known too: then they must have been seen to pay.
        """
        service = self._service
        service.fit(now_s)
        curves = {}
        for band in service.edges:
            doubt_s = service.doubt_s(band)
            sign = -1 if service.is_compared(band) else 1
            curves[band] = service.table_s(band), sign * doubt_s
        return curves

    def to_plain(self) -> dict[str, Any]:
        """Return all that was learnt."""
        return self._service.to_plain()

    def from_plain(self, plain: Mapping[str, Any]) -> None:
        """Take up what `to_plain` returned."""
        self._service.from_plain(plain, 0.0)


def band_of(edge: int) -> int:
    """Return the upper end of the band of a bucket with this edge: 2, 3, 4, 6, 8, 12, ..."""
    power = 1 << (edge - 1).bit_length()
    return 3 * power // 4 if power > 2 and 4 * edge <= 3 * power else power


def _has_edge(sample: ServiceSample) -> bool:
    return sample.edge > 0


def _in_band(sample: ServiceSample) -> ServiceSample:
    """Take the batches as if they had been as long as the band's upper end."""
    band = band_of(sample.edge)
    scale = band / sample.edge
    return ServiceSample(
        band,
        sample.rows,
        sample.batches,
        sample.sum_s * scale,
        sample.sum_squares_s2 * scale * scale,
    )
