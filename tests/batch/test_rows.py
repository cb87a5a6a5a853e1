import json
from dataclasses import fields

import pytest

from fusionframes.ff_kernels.batch.rows import MISTAKEN, OWN_COLUMNS, SETTINGS, read_rows
from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.pipeline.settings import Settings


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_txt_is_a_prompt_a_line_and_blank_lines_are_none(tmp_path):
    rows = read_rows(write(tmp_path, "p.txt", "a red circle\n\n  a blue square \n"))
    assert [(row.number, row.prompt) for row in rows] == [(1, "a red circle"), (3, "a blue square")]
    assert rows[0].label == {"id": 1}


def test_jsonl_and_csv_of_the_same_rows_are_the_same(tmp_path):
    values = {
        "prompt": "a circle, red",
        "seed": 7,
        "guidance_scale": 1,
        "is_mended": True,
        "fps": "low",
        "split": "test",
    }
    text = 'prompt,seed,guidance_scale,is_mended,fps,steps,split\n"a circle, red",7,1,true,low,,test\n'
    (one,), (other,) = (
        read_rows(write(tmp_path, "p.jsonl", json.dumps(values) + "\n")),
        read_rows(write(tmp_path, "p.csv", text)),
    )
    assert one.settings == other.settings == {"seed": 7, "guidance_scale": 1.0, "is_mended": True, "fps": "low"}
    assert type(one.settings["guidance_scale"]) is float
    assert one.extra == other.extra == {"split": "test"}


def test_parquet_of_a_table_with_empty_cells_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"prompt": ["a", "b"], "seed": [3.0, None], "id": ["x", "y"]})
    parquet.write_table(table, tmp_path / "p.parquet")
    rows = read_rows(tmp_path / "p.parquet")
    assert [(row.prompt, row.settings, row.label) for row in rows] == [("a", {"seed": 3}, {"id": "x"}),
                                                                       ("b", {}, {"id": "y"})]  # fmt: skip


def test_every_field_of_the_settings_is_a_column():
    assert {f.name for f in fields(Settings)} == set(SETTINGS)
    assert not set(SETTINGS) & set(OWN_COLUMNS)
    assert set(MISTAKEN.values()) <= set(SETTINGS) | set(OWN_COLUMNS)


@pytest.mark.parametrize("value", ["[0.3, 5]", '"0.3 5"', '"0.3, 5"'])
def test_setting_of_two_numbers_is_a_list_or_a_text(tmp_path, value):
    (row,) = read_rows(write(tmp_path, "p.jsonl", f'{{"prompt": "a", "guided": {value}}}'))
    assert row.settings == {"guided": (0.3, 5.0)}


def test_image_is_beside_the_file_of_prompts(tmp_path):
    (row,) = read_rows(write(tmp_path, "p.jsonl", '{"prompt": "a", "image": "start.png"}'))
    assert row.image == tmp_path / "start.png"


WRONG_ROWS = {
    "no_json": ("{'prompt': 1}", "expected an object"),
    "list": ('["a"]', "expected an object"),
    "no_prompt": ('{"seed": 1}', "expected a prompt"),
    "blank": ('{"prompt": "  "}', "expected a prompt"),
    "number": ('{"prompt": 5}', "expected a text as prompt, got 5"),
    "seed": ('{"prompt": "a", "seed": "one"}', "whole number as seed, got 'one'"),
    "fraction": ('{"prompt": "a", "steps": 2.5}', "whole number as steps, got 2.5"),
    "truth": ('{"prompt": "a", "seed": true}', "whole number as seed, got True"),
    "flag": ('{"prompt": "a", "is_mended": 1}', "true or false as is_mended, got 1"),
    "pair": ('{"prompt": "a", "guided": [1]}', "2 numbers as guided, got [1]"),
    "no_pair": ('{"prompt": "a", "guided": "low high"}', "2 numbers as guided, got 'low high'"),
    "decoder": ('{"prompt": "a", "decoder": "best"}', "got 'best'"),
    "mistaken": ('{"prompt": "a", "guidance": 3}', "column 'guidance_scale', got 'guidance'"),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_wrong_row_says_so_and_leaves_the_others_alone(tmp_path, name):
    line, problem = WRONG_ROWS[name]
    wrong, good = read_rows(write(tmp_path, "p.jsonl", f'{line}\n{{"prompt": "a"}}\n'))
    assert problem in wrong.problem
    assert (good.prompt, good.problem) == ("a", None)


WRONG_FILES = {
    "suffix": ("p.yaml", "a", "p.yaml"),
    "empty": ("p.txt", "\n\n", "found none"),
    "no_column": ("p.csv", "caption,seed\na,1\n", "column 'prompt'"),
    "no_table": ("p.parquet", "prompt", "parquet"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_wrong_file_is_one_sentence(tmp_path, name):
    file, text, named = WRONG_FILES[name]
    with pytest.raises(InputError, match=named):
        read_rows(write(tmp_path, file, text))


def test_missing_file_and_other_bytes_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_rows(tmp_path / "absent.txt")
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_rows(tmp_path / "p.txt")
