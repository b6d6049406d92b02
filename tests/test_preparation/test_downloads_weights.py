import re
from pathlib import Path

import pytest

from download_support import ROOT, data, left, load_tool, sha, tree
from mmaction_mbcd.preparation.downloads import weights as lib

weights_tool = load_tool("weights")


def test_published_weights():
    jobs = lib.weight_jobs(Path("checkpoints"))
    assert {j.download.path.name: j.download.checksum for j in jobs} == {
        "slowfast_r101_8x8x1_256e_kinetics400_rgb_20210218-0dd54025.pth": (
            "sha256:0dd54025"
        ),
        "slowonly_r50_8x8x1_256e_kinetics400_flow_20200704-6b384243.pth": (
            "sha256:6b384243"
        ),
        "H.pth.tar": None,
    }
    assert [j.download.urls[0].rsplit("/", 1)[0] for j in jobs] == [
        "https://download.openmmlab.com/mmaction/recognition/slowfast/"
        "slowfast_r101_8x8x1_256e_kinetics400_rgb",
        "https://download.openmmlab.com/mmaction/recognition/slowonly/"
        "slowonly_r50_8x8x1_256e_kinetics400_flow",
        "http://www.robots.ox.ac.uk/~vgg/data/vggsound/models",
    ]
    # The names are those that the config looks for.
    config = ROOT / "configs/mbcd/_base_/models/slowfast_slowonly_resnet18.py"
    text = re.sub(r'"\s*"', "", config.read_text())
    for job in jobs:
        assert f'"{job.download.path}"' in text


def test_weights(server, tmp_path, monkeypatch, capsys):
    video, audio = data(5000), data(4000, seed=1)
    name = f"net_20200101-{sha(video)[:8]}.pth"
    urls = dict(video=server.put(f"/{name}", video))
    urls["audio"] = server.put("/H.pth.tar", audio)
    monkeypatch.setattr(lib, "WEIGHTS", urls)
    arguments = [str(tmp_path / "c"), "--quiet", "--only", "video", "audio"]
    assert weights_tool.main(arguments) == 0
    assert tree(tmp_path / "c") == {name: video, "H.pth.tar": audio}
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        f"sha256 {sha(video)}  {name} (published: {sha(video)[:8]})",
        f"sha256 {sha(audio)}  H.pth.tar (published: none)",
    ]
    (tmp_path / "c" / name).unlink()
    server.put(f"/{name}", audio)
    assert weights_tool.main(arguments) == 1
    out, err = capsys.readouterr()
    assert f"its sha256 is {sha(audio)}, but {sha(video)[:8]} is published" in err
    assert name not in out and "H.pth.tar (published: none)" in out
    assert left(tmp_path / "c") == ["H.pth.tar"]


def test_weights_dry_run(server, tmp_path, monkeypatch, capsys):
    url = server.put("/H.pth.tar", data(4000))
    monkeypatch.setattr(lib, "WEIGHTS", dict(audio=url))
    more = ["--only", "audio", "--dry-run", "--sizes"]
    assert weights_tool.main([str(tmp_path / "c"), *more]) == 0
    assert capsys.readouterr().out == (
        f"{url} -> {tmp_path}/c/H.pth.tar (4.0 kB)\n"
        "dry run: 1 files, 4.0 kB; nothing written\n"
    )
    assert not (tmp_path / "c").exists()
    with pytest.raises(ValueError, match="no weights for 'depth'; there are some for"):
        lib.weight_jobs(tmp_path, ["depth"])
