import subprocess
import sys

import pytest

from fusionframes import ff_kernels as package
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.errors import InputError


def test_no_command_is_one_sentence(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("fusionframes: ")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("code", [
    "import fusionframes.ff_kernels.cli.main as c; c.build_parser()", "import fusionframes.ff_kernels as f; f.load",
])  # fmt: skip
def test_command_line_and_package_start_without_torch_until_needed(code):
    assert python(f"import sys; {code}; print('torch' in sys.modules)") == "False"


def test_package_gives_its_names_when_they_are_asked_for():
    code = """
from fusionframes.ff_kernels import Pipeline, Settings, __version__, load
pipeline = load()
assert type(pipeline) is Pipeline and __version__
print(pipeline.resolve(Settings(steps=3)).steps, pipeline.models.family)
"""
    assert python(code) == "3 1.0"
    assert set(package.__all__) <= {*dir(package), "Pipeline", "Settings"}
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        _ = package.Pipelines


def test_load_opens_the_folder_that_it_is_given(tmp_path):
    with pytest.raises(InputError, match="found no folder at"):
        package.load(tmp_path / "absent")
