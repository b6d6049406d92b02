import numpy as np
from PIL import Image

from media import smooth_frames, tone
from mmaction_mbcd.analysis import corruption_sheet
from mmaction_mbcd.datasets.transforms.corruptions import CORRUPTIONS


def test_every_kind_is_drawn_clean_and_at_five_severities(tmp_path, monkeypatch):
    frames = np.array(smooth_frames(4)).astype(np.uint8)
    rgb = list(np.repeat(frames[..., None], 3, -1))
    flow = [frame[..., :2] for frame in rgb]
    drawn, tile = [], corruption_sheet._tile

    def noted(picture, *limits):
        drawn.append(picture)
        return tile(picture, *limits)

    monkeypatch.setattr(corruption_sheet, "_tile", noted)
    path = tmp_path / "sheet.png"
    corruption_sheet.draw_corruptions(rgb, tone(0.5), flow, path)
    kinds = sum(map(len, CORRUPTIONS.values()))
    assert len(drawn) == 6 * kinds
    rows = [drawn[6 * i :][:6] for i in range(kinds)]
    np.testing.assert_array_equal(rows[0][0], rgb[2])
    # The first picture of a row is the clean one, the others lie ever further off.
    brightness = list(CORRUPTIONS["RGB"]).index("brightness")
    assert (np.diff([picture.mean() for picture in rows[brightness]]) > 0).all()
    with Image.open(path) as image:
        assert image.width > 1000 and image.height > 700
    assert path.stat().st_size < 400_000


def test_a_tile_by_hand():
    tile = corruption_sheet._tile(np.array([[0, 10], [15, 40]]), 10, 20)
    corners = tile[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert tile.shape == (72, 72, 3)
    assert corners.tolist() == [[0] * 3, [0] * 3, [127] * 3, [255] * 3]
