from cima_runc.base.rate import RateLimit


def test_what_costs_more_than_there_is_is_made_up_for() -> None:
    rate = RateLimit(60)
    rate.spend("host", 0.0, 90.0)
    assert not rate.has_room("host", 30.0)
    assert rate.has_room("host", 31.0)
    assert rate.has_room("other", 0.0)
    rate.spend("host", 1_000.0, 1.0)
    assert rate.has_room("host", 1_000.0)
