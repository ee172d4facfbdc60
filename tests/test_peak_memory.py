"""The measure of memory itself: it sees what a block takes, also after the process was larger before."""

from tests.peak_memory import grown


def test_growth_is_seen_below_an_earlier_peak():
    held = bytearray(b"x") * (256 << 20)
    del held
    with grown() as growth:
        held = bytearray(b"x") * (96 << 20)
        del held
    assert 90 << 20 < growth.bytes < 160 << 20
    with grown() as growth:
        pass
    assert growth.bytes < 8 << 20
