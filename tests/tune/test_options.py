from pathlib import Path

import pytest

import tvmq
from tvmq.errors import UsageError
from tvmq.tune.options import make_default_folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": -1}, "trials=-1, a number from 0"),
        ({"trials": 2.5}, "trials=2.5"),
        ({"trials": True}, "trials=True"),
        ({"minutes": 0}, "minutes=0, a number over 0"),
        ({"minutes": float("nan")}, "minutes=nan"),
        ({"minutes": "5"}, "minutes='5'"),
        ({"database": 5}, "database=5, a path is wanted; leave it out for"),
        ({"database": b"db"}, "database=b'db', a path"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        tvmq.Tune(**options)


def test_the_database_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tvmq.Tune().path == tmp_path / "tvmq" / "tuning.jsonl"
    make_default_folder()
    make_default_folder()
    assert (tmp_path / "tvmq").is_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification: ignore it
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tvmq.Tune().path == tmp_path / "home" / ".cache" / "tvmq" / "tuning.jsonl"
    assert tvmq.Tune(database="there.jsonl").path == Path("there.jsonl")
