import json
import tarfile

import pytest

from fusionframes.ff_kernels.batch.ledger import Ledger
from fusionframes.ff_kernels.batch.manifest import pack_tars, write_manifest
from fusionframes.ff_kernels.errors import InputError


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path)
    for i, key in enumerate(("aa01", "aa02", "bb03")):
        ledger.video(key).parent.mkdir(parents=True, exist_ok=True)
        ledger.video(key).write_bytes(bytes([i]) * 100)
        rows = [{"id": i, "split": "train"}] + ([{"id": "twin", "prompt": 5}] if i == 1 else [])
        ledger.commit(key, {"prompt": f"p{i}", "negative": None, "image": None, "frames": 5, "fps": 2.0, "bytes": 100,
                            "sha256": "0", "settings": {"seed": i, "steps": None}, "seconds": {"text": 0.5},
                            "rows": rows})  # fmt: skip
    return ledger


def test_manifest_has_a_row_per_row_of_the_prompts_and_foreign_columns_hide_none_of_ours(ledger):
    write_manifest(ledger)
    rows = [json.loads(line) for line in (ledger.folder / "manifest.jsonl").read_text().splitlines()]
    assert [(row["key"], row["id"], row["prompt"], row["seed"]) for row in rows] == [
        ("aa01", 0, "p0", 0), ("aa02", 1, "p1", 1), ("aa02", "twin", "p1", 1), ("bb03", 2, "p2", 2),
    ]  # fmt: skip
    assert rows[0]["row.split"] == "train"
    assert rows[2]["row.prompt"] == 5
    assert (ledger.folder / rows[0]["video"]).read_bytes() == bytes(100)


def test_parquet_manifest_holds_the_same_rows(ledger):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    written = write_manifest(ledger)
    assert [path.name for path in written] == ["manifest.jsonl", "manifest.parquet"]
    table = parquet.read_table(written[1]).to_pylist()
    assert [(row["key"], row["id"], row["seed"], row["steps"]) for row in table] == [
        ("aa01", "0", 0, None), ("aa02", "1", 1, None), ("aa02", "twin", 1, None), ("bb03", "2", 2, None),
    ]  # fmt: skip


def test_packs_hold_every_clip_once_in_shards_of_a_size_and_the_same_bytes_again(ledger):
    first = pack_tars(ledger, shard_bytes=200)
    contents = [path.read_bytes() for path in first]
    assert [path.name for path in first] == ["clips-00000.tar", "clips-00001.tar"]
    names = []
    for path in first:
        with tarfile.open(path) as tar:
            names += tar.getnames()
            record = json.load(tar.extractfile(next(n for n in tar.getnames() if n.endswith(".json"))))
            assert record["frames"] == 5
    assert names == ["aa01.mp4", "aa01.json", "aa02.mp4", "aa02.json", "bb03.mp4", "bb03.json"]
    assert [path.read_bytes() for path in pack_tars(ledger, shard_bytes=200)] == contents
    assert [path.name for path in pack_tars(ledger)] == ["clips-00000.tar"]
    assert len(list((ledger.folder / "packs").iterdir())) == 1


def test_nothing_to_pack_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="found none"):
        pack_tars(Ledger(tmp_path))
