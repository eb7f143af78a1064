"""Names of pictures that records give stay inside of the folders that the user gives."""

from pathlib import Path

import pytest

from encoder.data.roots import find_picture


@pytest.fixture
def folders(tmp_path) -> Path:
    """Two roots, a file outside of them, and links from the first root to a data set elsewhere."""
    for name in ("root/a.png", "root/sub/b.png", "more/c.png", "elsewhere/set/d.png", "elsewhere/secret.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "rooted.png").write_text("a sibling whose name begins like the root's")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere" / "set")
    (tmp_path / "root" / "file.png").symlink_to(tmp_path / "elsewhere" / "set" / "d.png")
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", "root/a.png"),
        ("./sub//b.png", "root/sub/b.png"),
        ("sub/../a.png", "root/a.png"),
        ("c.png", "more/c.png"),
        ("link/d.png", "elsewhere/set/d.png"),  # the user's own links lead anywhere
        ("file.png", "elsewhere/set/d.png"),
        ("{folder}/root/sub/b.png", "root/sub/b.png"),  # absolute, and inside
        ("../more/c.png", "more/c.png"),  # out of one root and into another
    ],
)
def test_a_name_inside_of_a_root_is_found(folders, name, content):
    roots = [folders / "root", folders / "more"]
    assert find_picture(name.format(folder=folders), roots).read_text() == content


OUTSIDE = (
    "../elsewhere/secret.png", "sub/../../elsewhere/secret.png", "{folder}/elsewhere/secret.png",
    "../rooted.png", "/etc/passwd", "..", ".", "/",
)  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_is_refused_by_name(folders, name):
    name = name.format(folder=folders)
    with pytest.raises(ValueError, match=r"leads out of .*root, .*more; .*allow_outside_root=true") as caught:
        find_picture(name, [folders / "root", folders / "more"])
    assert str(caught.value).startswith(name)


def test_outside_is_allowed_by_the_option_alone(folders):
    roots = [folders / "root"]
    for name in ("../elsewhere/secret.png", f"{folders}/elsewhere/secret.png"):
        found = find_picture(name, roots, allow_outside_root=True)
        assert found.read_text() == "elsewhere/secret.png"


def test_a_link_is_no_way_up(folders):
    """The system takes `link/..` for the folder above the link's target."""
    assert (folders / "root" / "link" / ".." / "secret.png").is_file()
    with pytest.raises(FileNotFoundError, match=r"link/\.\./secret\.png is in none of"):
        find_picture("link/../secret.png", [folders / "root"])


def test_a_root_that_is_a_link_holds_what_its_target_holds(folders):
    for name in ("a.png", f"{folders}/root/a.png", f"{folders}/alias/a.png"):
        assert find_picture(name, [folders / "alias"]).read_text() == "root/a.png"


def test_relative_roots_are_those_of_the_working_folder(folders, monkeypatch):
    monkeypatch.chdir(folders / "root")
    assert find_picture("b.png", [Path("sub")]).read_text() == "root/sub/b.png"
    assert find_picture("a.png", [Path()]).read_text() == "root/a.png"
    with pytest.raises(ValueError, match="leads out of"):
        find_picture("../a.png", [Path("sub")])


@pytest.mark.parametrize("name", ["", "a\0.png", None, 3, ["a.png"]])
def test_what_is_no_name_is_refused(folders, name):
    with pytest.raises(ValueError, match="a picture's name must be a file's name"):
        find_picture(name, [folders / "root"])


@pytest.mark.parametrize("name", ["none.png", "sub", "x" * 5000, "a.png/b"])
def test_what_is_not_there_is_missing(folders, name):
    with pytest.raises(FileNotFoundError, match="is in none of"):
        find_picture(name, [folders / "root"])
    with pytest.raises(FileNotFoundError, match="no folders"):
        find_picture(name, [])
