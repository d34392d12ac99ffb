"""What a log shows of a transfer."""

from espalier.cli.moving import Lines


def test_a_line_every_ten_seconds_with_rate_and_time_left() -> None:
    now, shown = [0.0], list[str]()
    lines = Lines("uploading", 100_000_000, shown.append, lambda: now[0])
    for second in range(1, 31):
        now[0] = second
        lines.moved(1_000_000)
    assert shown == [
        "uploading: 10.0 MB of 100.0 MB, 1.0 MB/s, 1:30 left",
        "uploading: 20.0 MB of 100.0 MB, 1.0 MB/s, 1:20 left",
        "uploading: 30.0 MB of 100.0 MB, 1.0 MB/s, 1:10 left",
    ]


def test_what_is_done_at_once_says_nothing() -> None:
    shown: list[str] = []
    lines = Lines("uploading", 10, shown.append, lambda: 0.0)
    lines.moved(10)
    assert shown == []


def test_bytes_that_have_to_travel_again_are_no_progress() -> None:
    now, shown = [0.0], list[str]()
    lines = Lines("downloading", 1000, shown.append, lambda: now[0])
    lines.moved(500)
    now[0] = 10.0
    lines.moved(-500)
    assert shown == ["downloading: 0 B of 1.0 kB"]
