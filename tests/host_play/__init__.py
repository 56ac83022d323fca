"""Plays in which hosts are rented and much goes wrong: what is drawn (`plays`), whose turn it is and what time (`stage`), the
market, the store and the locks (`props`), who acts (`actors`), and what they act in, with its judge (`world`).

    from tests.host_play.plays import Play
    from tests.host_play.world import perform

    perform(Play(work=((20,), (20,)), begins=6))        # raises AssertionError where money is lost

What must hold is written in `tests/callsheet/test_host_machine.py`, which draws plays by the hundred.
"""
