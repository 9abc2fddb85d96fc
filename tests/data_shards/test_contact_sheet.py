import matplotlib.image
import pytest

from data_shards.contact_sheet import contact_sheet, describe
from tests.data_shards.helpers import build_places

SHAPES = [(8, 9, 10), (7, 12, 6), (10, 6, 9)]


@pytest.mark.parametrize("max_volumes", [1, 2, 24])
def test_a_contact_sheet_is_a_picture_with_something_on_it(tmp_path, max_volumes):
    index = build_places(tmp_path, SHAPES)
    contact_sheet(index, tmp_path / "look/sheet.png", max_volumes)
    picture = matplotlib.image.imread(tmp_path / "look/sheet.png")
    assert picture.shape[0] > 100 and picture.std() > 0.05


def test_the_description_counts_what_is_there(tmp_path):
    rows = dict(describe(build_places(tmp_path, SHAPES, "webdataset")))
    assert rows["volumes"] == "3 (3 labelled)" and rows["persons"] == "3"
    assert rows["smallest shape"].startswith("6 x 6 x 7") and rows["largest shape"] == "10 x 12 x 10"
    assert rows["class 2"] == "part 2, in 3 of 3 labelled volumes"
    assert rows["quarantined"] == rows["duplicates dropped"] == "0" and len(rows["index sha256"]) == 64
