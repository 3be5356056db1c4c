"""Recorded provider traffic: what each call costs, to the nano, against the price data read by other means than the product's."""

from __future__ import annotations

from support.corpus import cases, needs_corpus, read
from support.corpus_costs import Priced


def test_every_recording_costs_what_the_price_data_says() -> None:
    """S15, F101, F111: to the nano, of every strict recording with usage; unpriced just where the data has no price."""
    needs_corpus()
    found = Priced()
    for case in cases():
        found.add(case, read(case, None))
    assert not found.wrong, "\n" + "\n".join(found.wrong)
    assert found.priced > 500
