"""Few labels: as many of each class as asked, nested in one another, the same for the same draw."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from openjepa.data.fingerprint import fingerprint
from openjepa.data.sources import canonical_spec, open_source
from openjepa.data.sources.few import draw_labels


@given(labels=some.lists(some.integers(0, 4), min_size=1, max_size=80), count=some.integers(1, 30), draw=some.integers(0, 9))
def test_every_class_has_as_many_as_asked_or_all(labels: list[int], count: int, draw: int):
    all_labels = np.array(labels, np.int64)
    chosen = draw_labels(all_labels, count, draw)
    assert len(set(chosen.tolist())) == len(chosen)
    assert (np.diff(chosen) > 0).all()
    for number in set(labels):
        assert int((all_labels[chosen] == number).sum()) == min(count, labels.count(number))
    assert set(draw_labels(all_labels, max(count - 1, 1), draw)) <= set(chosen)


def test_a_draw_is_of_the_whole_source_and_of_its_number():
    whole, few, again, other = (
        open_source(spec, 1) for spec in ("sample:train", "few:3:0:sample:train", "few:3:0:sample:train", "few:3:1:sample:train")
    )
    assert len(few) == 3 * len(whole.classes) and few.classes == whole.classes
    places = {whole.path(number): number for number in range(len(whole))}
    for number in range(len(few)):
        same = places[few.path(number)]
        np.testing.assert_array_equal(few.load(number), whole.load(same))
        assert few.labels[number] == whole.labels[same]
    assert fingerprint(few) == fingerprint(again) != fingerprint(other)


def test_one_name_for_the_same_data(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    names = {canonical_spec(f"few:5:1:{path}") for path in (folder, f"{folder}/", f"{tmp_path}/./photos")}
    assert names == {f"few:5:1:{folder.resolve()}"}


@pytest.mark.parametrize("spec", ["few:sample:train", "few:0:0:sample:train", "few:3:x:sample:train", "few:3:0:"])
def test_another_spec_is_refused_with_an_example(spec: str):
    with pytest.raises(ValueError, match="few:10:0:sample:train"):
        open_source(spec, 1)


def test_images_without_labels_have_no_few(tmp_path):
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="has no labels"):
        open_source(f"few:3:0:{tmp_path}", 1)
