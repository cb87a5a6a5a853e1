from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo import WEIGHTS


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
