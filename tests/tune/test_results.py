from tvmq.tune.results import TunedKernel, decisions_of, written


def test_only_what_beats_the_default_is_handed_on():
    kept = TunedKernel("a", "('a', 1)", 1, 10.0, 9.0, 32, {"rows": 6, "outer": "rows"})
    same = TunedKernel("b", "('b', 1)", 1, 10.0, 10.0, 32, None)
    assert decisions_of([kept, same]) == {"('a', 1)": {"rows": 6, "outer": "rows"}}
    assert TunedKernel.from_json(kept.to_json()) == kept
    assert written({"rows": 6, "outer": "rows"}) == "rows 6, outer rows"
