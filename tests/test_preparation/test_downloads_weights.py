import re
from pathlib import Path

from helpers.download_server import ROOT, data, left, load_tool, sha, tree
from mmaction_mbcd.preparation.downloads import weights as lib

weights_tool = load_tool("weights")


def test_published_weights():
    files = lib.weight_files(Path("checkpoints"))
    assert {file.path.name: file.sha256 for file in files} == {
        "slowfast_r101_8x8x1_256e_kinetics400_rgb_20210218-0dd54025.pth": "0dd54025",
        "slowonly_r50_8x8x1_256e_kinetics400_flow_20200704-6b384243.pth": "6b384243",
        "H.pth.tar": "",
    }
    assert [file.urls[0].rsplit("/", 1)[0] for file in files] == [
        "https://download.openmmlab.com/mmaction/recognition/slowfast/"
        "slowfast_r101_8x8x1_256e_kinetics400_rgb",
        "https://download.openmmlab.com/mmaction/recognition/slowonly/"
        "slowonly_r50_8x8x1_256e_kinetics400_flow",
        "http://www.robots.ox.ac.uk/~vgg/data/vggsound/models",
    ]
    # The names are those that the config looks for.
    config = ROOT / "configs/mbcd/_base_/models/slowfast_slowonly_resnet18.py"
    text = re.sub(r'"\s*"', "", config.read_text())
    for file in files:
        assert f'"{file.path}"' in text


def test_weights(server, tmp_path, monkeypatch, capsys):
    video, audio = data(5000), data(4000, seed=1)
    name = f"net_20200101-{sha(video)[:8]}.pth"
    urls = dict(video=server.put(f"/{name}", video))
    urls["audio"] = server.put("/H.pth.tar", audio)
    monkeypatch.setattr(lib, "WEIGHTS", urls)
    arguments = [str(tmp_path / "c"), "--quiet", "--only", "video", "audio"]
    assert weights_tool.main(arguments) == 0
    assert tree(tmp_path / "c") == {name: video, "H.pth.tar": audio}
    remarks = [
        f"fetched: {name} (sha256 {sha(video)}, published: {sha(video)[:8]})",
        f"fetched: H.pth.tar (sha256 {sha(audio)}, published: none)",
    ]
    out = capsys.readouterr().out
    assert all(remark in out for remark in remarks)
    assert weights_tool.main(arguments) == 0
    assert "2 files: 2 there already" in capsys.readouterr().out
    assert len(server.gets()) == 2
    (tmp_path / "c" / name).unlink()
    server.put(f"/{name}", audio)
    assert weights_tool.main(arguments) == 1
    out, err = capsys.readouterr()
    assert f"its sha256 is {sha(audio)}, but {sha(video)[:8]} is published" in err
    assert name not in out and "there already: H.pth.tar (sha256" in out
    assert left(tmp_path / "c") == ["H.pth.tar"]


def test_weights_dry_run(server, tmp_path, monkeypatch, capsys):
    url = server.put("/H.pth.tar", data(4000))
    monkeypatch.setattr(lib, "WEIGHTS", dict(audio=url))
    assert weights_tool.main([str(tmp_path / "c"), "--only", "audio", "--dry-run"]) == 0
    assert capsys.readouterr().out == (
        f"{url} -> {tmp_path}/c/H.pth.tar (4.0 kB)\n"
        "dry run: 1 files, 4.0 kB; nothing written\n"
    )
    assert not (tmp_path / "c").exists()
