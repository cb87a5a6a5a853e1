from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo import WEIGHTS
from fusionframes.ff_kernels.runtime.devices import ORDER


def test_convert_and_info_describe_the_demo_files(tmp_path, capsys):
    for name, words in (
        ("keyframes", "a keyframe U-Net of release 1.0"),
        ("video_movq", "a video MoVQ"),
        ("interpolation", "an interpolation U-Net of release 1.0"),
        ("movq", "an image MoVQ"),
        ("text_encoder", "a T5 text encoder"),
    ):
        target = tmp_path / f"{name}.safetensors"
        (source,) = WEIGHTS.glob(f"*/fusionframes_demo_{name}.safetensors")
        assert main(["convert", str(source), str(target), "--dtype", "float32"]) == 0
        assert main(["info", str(target)]) == 0
        printed = capsys.readouterr().out
        assert words in printed
        assert "float32" in printed
    assert main(["info", str(tmp_path / "absent.pt")]) == 2
    assert "absent.pt" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "x.bin")]) == 2
    assert not (tmp_path / "x.bin").exists()


def test_info_tells_what_every_device_computes_in_and_is_served_by(capsys):
    assert main(["info", "--backends"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "implementations:" in line]
    assert [line.split()[0] for line in lines] == list(ORDER)
    served = {line.split()[0]: line.rpartition(": ")[2] for line in lines}
    assert served == {"cuda": "triton, eager", "mps": "eager", "xpu": "eager", "npu": "eager", "cpu": "cpu, eager"}
    assert all(("computes in float32" in line) is not ("not found" in line) for line in lines)
