"""A file that is being replaced is there completely or not at all, and leaves nothing beside it."""

import pytest

from helpers.files import replacing

pytestmark = pytest.mark.charts


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_when_the_block_succeeds(tmp_path):
    path = tmp_path / "new" / "run.json"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".json" and temporary != path
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and names(path.parent) == ["run.json"]


def test_an_existing_file_is_replaced_and_only_at_the_end(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    with replacing(str(path)) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["run.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "run.json"
    path.write_text("old")
    with pytest.raises(error):
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error
    assert path.read_text() == "old" and names(tmp_path) == ["run.json"]


def test_what_cannot_be_renamed_or_created_raises_oserror(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        with replacing(tmp_path / "folder") as temporary:
            temporary.write_text("new")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        with replacing(tmp_path / "file" / "run.json"):
            pytest.fail("the block must not run")
    with pytest.raises(OSError):
        with replacing(tmp_path / "forgotten.json"):
            pass
    assert names(tmp_path) == ["file", "folder"]
