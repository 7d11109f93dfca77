from __future__ import annotations

from pathlib import Path

import pytest

from training.running.files import (
    OutputExistsError,
    refuse_existing,
    replace_between,
    whole_file,
)
from training.running.locks import locked


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def stopped_halfway() -> None:
        with whole_file(path) as partial:
            partial.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_halfway()
    assert path.read_text() == "old"

    with whole_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_holds_anything_is_refused_unless_asked_for(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "none", overwrite=False)
    with locked(tmp_path, "training"):
        pass
    refuse_existing(tmp_path, overwrite=False)  # the lock is nothing to lose
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(OutputExistsError, match="is not empty: name another folder"):
        refuse_existing(tmp_path, overwrite=False)
    refuse_existing(tmp_path, overwrite=True)


def test_what_stands_between_markers_is_replaced_and_a_page_without_them_left(
    tmp_path: Path,
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before <<\nold\n>> after")

    replace_between(page, "<<", ">>", "new\n")
    assert page.read_text() == "before <<\nnew\n>> after"

    with pytest.raises(ValueError, match=r"page\.md lacks the markers << and \]\]"):
        replace_between(page, "<<", "]]", "newer\n")
    assert page.read_text() == "before <<\nnew\n>> after"
