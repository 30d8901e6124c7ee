import trio
import trio.testing

from couchestord.ec.throttle import Throttle


def test_work_waits_for_its_debt_to_be_paid() -> None:
    async def main() -> None:
        throttle = Throttle(100)
        assert throttle.is_open()
        throttle.spend(350)
        assert not throttle.is_open()
        await trio.sleep(2.4)
        assert not throttle.is_open()
        await trio.sleep(0.2)
        assert throttle.is_open()
        await trio.sleep(1000)
        assert throttle.is_open()
        throttle.spend(101)  # what was not used is not saved up
        assert not throttle.is_open()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_clients_come_first_unless_it_is_urgent() -> None:
    busy = True
    throttle = Throttle(100, lambda: busy)
    assert not throttle.is_open()
    assert throttle.is_open(urgent=True)
    busy = False
    assert throttle.is_open()
    throttle.spend(200)
    assert not throttle.is_open(urgent=True)
