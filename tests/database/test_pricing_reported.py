"""Charging what the provider itself says that a call cost, on a real database."""

from bursar_server.metering.model import DeductItem
from bursar_server.pricing.model import Usage
from support.metering import MODEL, TENANT, Ledger, new_id
from support.proofs import prove

TENS = Usage(input_tokens=10, output_tokens=10)


async def test_the_price_says_whose_figure_is_charged(ledger: Ledger, database_url: str) -> None:
    """S15: the record names the price and keeps both figures; the proof of the books comes to the same."""
    key = ledger.key(ledger.user("alice@example.com"))
    two = (DeductItem(MODEL, "", TENS), DeductItem("unheard-of", "", TENS))
    before, after, silent, several = (new_id() for _ in range(4))
    await ledger.deduct(key, before, 10, 10, provider_cost_nanos=77)
    theirs = ledger.price("test-*", {"provider_cost": 1_500_000}, source="TENANT", tenant_id=TENANT)
    ledger.bump()
    await ledger.deduct(key, after, 10, 10, provider_cost_nanos=77)
    await ledger.deduct(key, silent, 10, 10)
    await ledger.deduct(key, several, items=two, provider_cost_nanos=200)
    found = {
        request_id: (cost, other, reported, price_id == theirs, unpriced)
        for request_id, cost, other, reported, price_id, unpriced in ledger.sql(
            "SELECT request_id, cost_nanos, other_cost_nanos, provider_cost_nanos, price_id, unpriced FROM usage_records"
        )
    }
    assert found == {
        before: (30, 0, 77, False, False),
        after: (116, 116, 77, True, False),
        silent: (30, 0, None, False, False),
        several: (300, 300, 200, True, False),
    }
    proof = await prove(database_url)
    assert proof.differences == []
