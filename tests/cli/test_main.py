import subprocess
import sys

import pytest

from fusionframes import ff_kernels as package
from fusionframes.ff_kernels.cli.main import main


def test_no_command_is_one_sentence(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("fusionframes: ")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("code", [
    "import fusionframes.ff_kernels.cli.main as c; c.build_parser()", "import fusionframes.ff_kernels",
])  # fmt: skip
def test_command_line_and_package_start_without_torch_until_needed(code):
    assert python(f"import sys; {code}; print('torch' in sys.modules)") == "False"


def test_package_gives_its_names_when_they_are_asked_for():
    code = """
from fusionframes.ff_kernels import Pipeline, Settings, __version__, demo_pipeline
pipeline = demo_pipeline()
assert type(pipeline) is Pipeline and __version__
print(pipeline.resolve(Settings(steps=3)).steps, pipeline.models.family)
"""
    assert python(code) == "3 1.0"
    assert all(getattr(package, name) for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        _ = package.Pipelines
