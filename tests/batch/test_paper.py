import re
from pathlib import Path

from fusionframes.ff_kernels.batch import paper, run

README = (Path(run.__file__).parent / "README.md").read_text(encoding="utf-8")


def test_tables_of_the_page_follow_from_their_seconds_per_clip():
    tables = re.findall(r"(\| card \|.*?\n)\n", README + "\n", re.DOTALL)
    assert len(tables) == len(paper.STEPS)
    for table in tables:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        seconds = {row[0]: float(row[2]) for row in rows}
        assert list(paper.table(seconds)) == table.splitlines()


def test_busy_shares_of_ten_times_as_many_rows_are_those_of_the_page():
    shares = [one.share for s in (4.75, 1.49) for one in paper.forecasts({"H200": s}, 10 * paper.CLIPS_ASKED)]
    assert f"busy {shares[2]:.0%} (50 + 50 steps) and {shares[5]:.0%} (10 + 10)" in " ".join(README.split())


def test_encoders_grow_with_the_prompts_up_to_the_workers():
    assert [run.encoders(*case) for case in ((0, 4), (1, 4), (3999, 4), (8000, 2), (8000, 64))] == [1, 1, 1, 2, 4]
