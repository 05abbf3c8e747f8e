from cima_runc.base.rate import RateLimit


def test_what_costs_more_than_there_is_is_made_up_for() -> None:
    rate = RateLimit(60)
    rate.spend("host", 0.0, 90.0)
    assert not rate.has_room("host", 30.0)
    assert rate.has_room("host", 31.0)
    assert rate.has_room("other", 0.0)
    rate.spend("host", 1_000.0, 1.0)
    assert rate.has_room("host", 1_000.0)


def test_what_cost_nothing_is_given_back_and_no_more_than_that() -> None:
    rate = RateLimit(2)
    assert [rate.allows("host", 0.0) for _ in range(3)] == [True, True, False]
    rate.give_back("host", 0.0)
    assert rate.allows("host", 0.0)
    for _ in range(9):
        rate.give_back("other", 0.0)
    assert [rate.allows("other", 0.0) for _ in range(3)] == [True, True, False]
