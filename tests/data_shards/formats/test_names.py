import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.formats.names import all_plain, below, plain_name

GOOD = ["shard-00000.tar", "sub-01_ses-2_T1w", "Größe", "a..b", "-", "curve.jsonl", "a b"]
BAD = ["", ".", "..", ".hidden", "../x", "/etc/passwd", "a/../../x", "a/b", "a/", "..\\x", "C:\\x", "a\0", "\0"]
TEXTS = st.text(st.sampled_from("ab./\\\0ü-"), max_size=4)


def is_plain(name: str) -> bool:
    try:
        return plain_name(name) == name
    except ValueError as error:
        assert repr(name) in str(error)
        return False


def test_plain_names_are_told_from_paths():
    assert [name for name in GOOD + BAD if is_plain(name)] == GOOD


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 3, len(GOOD)])
def test_one_path_among_the_names_of_a_column_is_found(bad, place):
    names = [*GOOD[:place], bad, *GOOD[place:]]
    assert all_plain(pa.chunked_array([GOOD])) and not all_plain(pa.chunked_array([names]))
    assert not all_plain(pa.chunked_array([GOOD, [], names]))


@given(st.lists(st.lists(TEXTS | st.none(), max_size=4), max_size=3), st.integers(0, 4), st.integers(0, 4))
def test_a_column_is_judged_as_its_names_are_one_by_one(chunks, start, length):
    column = pa.chunked_array(chunks, pa.string()).slice(start, length)
    assert all_plain(column) == all(is_plain(name) for name in column.to_pylist() if name is not None)


def test_a_path_below_a_folder_stays_there(tmp_path):
    for name in ("imagesTr/a.nii.gz", "./imagesTr/a.nii.gz", "a..b/c", "a"):
        assert below(tmp_path, name) == tmp_path / name
    for name in ("..", "../x", "a/../../x", "a/../x", "/etc/passwd", "//x", "..\\x", "a\0"):
        with pytest.raises(ValueError, match="leads out of"):
            below(tmp_path, name)
