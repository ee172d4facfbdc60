"""A few seconds of tests/web/load.py: many people at once, and a server that is killed under them."""

from web.load import run


def test_eight_people_and_three_kills_lose_nothing(tmp_path):
    times, count, _ = run(tmp_path, clients=8, seconds=4, kills=3, pause=0.02, items=1000)
    assert count > 8 and times


def test_twenty_people_at_once(tmp_path):
    times, count, _ = run(tmp_path, clients=20, seconds=3, kills=0, pause=0.3, items=1000)
    assert count > 20 and times[len(times) // 2] < 5
