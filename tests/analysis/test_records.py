"""An analysis is JSON and back, sorts its sites, and says the worst in words."""

from __future__ import annotations

import json

from tests.analysis.nets import transformer
from tvmq.analysis.records import LISTED, Analysis


def test_the_record_is_json_and_its_text_lists_the_worst_sites():
    found = transformer()
    assert Analysis.from_json(json.loads(json.dumps(found.to_json()))) == found
    ranked = [each.alone.sqnr_db for each in found.worst_first if each.alone]
    assert ranked == sorted(ranked)
    listed = [line.split()[0] for line in str(found).splitlines() if line.startswith("  ") and line[2] != " "]
    assert listed == [site.site for site in found.worst_first[:LISTED]]
