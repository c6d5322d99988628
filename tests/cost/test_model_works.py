from tests.cost.tiny import NATIVE, asked
from tvmq.cost.model_works import Collector
from tvmq.cost.works import Parts
from tvmq.plan.assign import assign_precisions
from tvmq.spec import W8A8, Precision
from tvmq.target import load_profile

SITES = ["norm1", "fc1", "gelu.0", "fc2", "norm2", "head"]


def test_a_model_is_taken_apart_in_every_precision_that_its_sites_have():
    collector = Collector(asked(), Parts(NATIVE, 1), NATIVE)
    plan = assign_precisions(asked().nodes, asked().module_hash)
    assert [site.site for site in plan.sites] == SITES
    collector.add(W8A8)
    collector.add(Precision(4, 8))
    collector.add_float(SITES)
    found = collector.finish()
    names = {site: {name for other, name in found.options if other == site} for site in SITES}
    assert names["norm1"] == {"float", "w8a8"}
    assert names["head"] == {"float", "w8a8"}  # the last product keeps 8 bits, and so does the first
    assert names["fc2"] == {"float", "w8a8", "w4a8"}
    assert found.weight_bytes["fc2", "float"] > 3 * found.weight_bytes["fc2", "w8a8"]
    assert found.options["gelu.0", "w8a8"] == ()
    assert len(found.options["gelu.0", "float"]) == 1
    assert found.activation_bytes["w8a8"] < found.activation_bytes["float"]
    ends = {each.value.name: (each.value.writers, each.value.readers) for each in found.conversions}
    assert ends == {
        "x": ((), ("norm1", "add.2")), "norm1": (("norm1",), ("fc1",)), "fc1.bias": (("fc1",), ("gelu.0",)),
        "gelu.0": (("gelu.0",), ("fc2",)), "fc2.bias": (("fc2",), ("add.2",)),
        "add.2": (("fc2",), ("norm2",)), "norm2": (("norm2",), ("head",)), "head.bias": (("head",), ("",)),
    }  # fmt: skip
    assert all(each.to_integer and each.to_float[0] for each in found.conversions)


def test_weights_that_a_kernel_takes_as_bytes_count_as_the_file_stores_them():
    profile = load_profile("x86_amx")
    collector = Collector(asked(), Parts(profile, 1), profile)
    collector.add(W8A8)
    collector.add(Precision(4, 8))
    collector.add_float(SITES)
    found = collector.finish()
    assert found.weight_bytes["fc2", "w4a8"] < 0.75 * found.weight_bytes["fc2", "w8a8"]
