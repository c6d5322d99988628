from tests.test_artifact import GOLDEN, fake_built
from tvmq import artifact
from tvmq.manifest import Manifest


def test_a_manifest_survives_json():
    manifest, _ = artifact.pack(fake_built(), artifact_description(), GOLDEN)
    assert Manifest.from_json(manifest.to_json()) == manifest


def artifact_description():
    from tests import tiny_program

    return tiny_program.description(("avx2",))
