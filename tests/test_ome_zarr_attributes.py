"""The attributes of OME-Zarr, read and written, without a store."""

import contextlib
import copy
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw
from tilework.formats.ome_zarr import Level, OmeGroup, image_attributes, labels_attributes, read_group

PLACE = st.floats(-1e6, 1e6, allow_subnormal=False)
SIZE = st.floats(1e-6, 1e6)
TEXT = st.text("abcXYZ äµ0", min_size=1, max_size=6)
META = tw.ImageMeta(
    "tczyx", units={"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"},
    scale=(5, 1, 2, 0.5, 0.25), translation=(0, 0, 1, 10, 20), channel_names=["a", "b"],
    channel_colors=["FF0000", "00FF00"], name="cells",
)  # fmt: skip


def level_of(meta, path="0", factor=1):
    return Level(path, tuple(s * factor for s in meta.scale), meta.translation)


@st.composite
def metas(draw):
    """All that OME-Zarr can say of an image."""
    front = draw(st.sampled_from(["", "t", "c", "q", "tc", "tq"]))
    axes = [*front, *draw(st.sampled_from(["zyx", "yx", "xyz", "ab"]))]
    types = [{"t": "time", "c": "channel", "q": None}.get(a, "space") for a in axes]
    units = st.none() | st.sampled_from(["micrometer", "second", "furlong"])
    n = len(axes)
    several = {"min_size": n, "max_size": n}
    meta = tw.ImageMeta(
        axes, types=types, units=draw(st.lists(units, **several)), scale=draw(st.lists(SIZE, **several)),
        translation=draw(st.lists(PLACE, **several)), name=draw(st.none() | TEXT),
    )  # fmt: skip
    if "c" in axes and draw(st.booleans()):
        color = st.text("0123456789ABCDEF", min_size=6, max_size=6)
        colors = draw(st.lists(color, min_size=1, max_size=4))
        names = draw(st.none() | st.lists(TEXT, min_size=len(colors), max_size=len(colors)))
        meta = meta.replace(channel_names=names, channel_colors=colors)
    return meta


@given(metas(), st.sampled_from(["0.4", "0.5"]), st.integers(1, 3), st.none() | TEXT)
def test_what_is_written_is_read_back(meta, version, count, kind):
    levels = [level_of(meta, f"s{k}", 2**k) for k in range(count)]
    text = json.dumps(image_attributes(meta, version, levels, kind=kind))
    (image,) = read_group(json.loads(text), "here").images
    assert image.meta() == meta
    assert image.levels == tuple(levels)
    assert (image.version, image.kind) == (version, kind)
    assert image.meta(count - 1).scale == levels[-1].scale


@pytest.mark.parametrize(("version", "home"), [("0.4", None), ("0.5", "ome")])
def test_each_version_has_its_place(version, home):
    found = image_attributes(META, version, [level_of(META)], label={"colors": []}, dtype="u2")
    inner = found if home is None else found[home]
    assert set(found) == ({"ome"} if home else {"multiscales", "image-label"})
    assert inner["image-label"]["source"] == {"image": "../../"}
    assert ("version" in inner) == (home is not None)
    assert ("version" in inner["multiscales"][0]) == (home is None)
    channels = image_attributes(META, "0.4", [level_of(META)], dtype="i2")["omero"]["channels"]
    assert channels[1] == {
        "label": "b", "color": "00FF00", "active": True,
        "window": {"min": -32768, "max": 32767, "start": -32768, "end": 32767},
    }  # fmt: skip
    listed = labels_attributes(["cells", "more/nuclei"], version)
    assert read_group(listed, "here").labels == ("cells", "more/nuclei")


def test_units_get_the_words_of_the_format():
    units = {"t": "ms", "z": "um", "y": "\u00b5m", "x": "\u03bcm"}
    axes = image_attributes(META.replace(units=units), "0.4", [level_of(META)])["multiscales"][0]["axes"]
    words = ["millisecond", None, "micrometer", "micrometer", "micrometer"]
    assert [a.get("unit") for a in axes] == words


@pytest.mark.parametrize(
    ("axes", "types", "message"),
    [
        ("abcdyx", None, "at most five axes"),
        ("yxc", None, "Output.*channel_axis=0"),
        ("yxc", None, r"transpose\(out, \(2, 0, 1\)\)"),
        ("yxt", None, r"transpose\(out, \(2, 0, 1\)\)"),
        ("ctyx", None, "time first"),
        ("tzcyx", None, r"each=.*transpose\(out, \(0, 2, 1, 3, 4\)\)"),
        ("x", None, "two or three axes of space"),
        ("ab", None, "types="),
        ("tuyx", {"u": "time"}, "at most one axis of time"),
        ("abyx", None, "neither time nor space"),
        ("cbyx", None, "neither time nor space"),
    ],
)
def test_axes_without_a_place_are_refused_with_the_cure(axes, types, message):
    meta = tw.ImageMeta(axes, types=types)
    with pytest.raises(tw.TilingError, match=message):
        image_attributes(meta, "0.5", [level_of(meta)])


def test_levels_that_readers_would_misread_are_refused():
    with pytest.raises(tw.TilingError, match=r"positive scales.*y is -1.*flip"):
        image_attributes(META, "0.5", [level_of(META.replace(scale={"y": -1}))])
    with pytest.raises(tw.TilingError, match="one per axis"):
        image_attributes(META, "0.5", [Level("0", (1.0, 1.0), META.translation)])
    for levels in ([], [level_of(META), level_of(META)]):
        with pytest.raises(tw.TilingError, match="paths that differ"):
            image_attributes(META, "0.5", levels)
    with pytest.raises(tw.TilingError, match="version must be one of"):
        image_attributes(META, "0.6", [level_of(META)])


# -- what others write --------------------------------------------------------------------------------------

AXES = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]


def image(**changes):
    entry = {"version": "0.4", "axes": AXES, "datasets": [{"path": "0"}]} | changes
    return {key: value for key, value in entry.items() if value is not None}


def read(entry, **others):
    return read_group({"multiscales": [entry], **others}, "the group").images[0]


def moves(*values):
    return [{"type": key, key: list(value)} for key, value in values]


@given(st.lists(st.tuples(st.booleans(), st.tuples(SIZE, SIZE)), max_size=4), st.integers(0, 4))
def test_transformations_are_applied_in_their_order(parts, cut):
    """First those of the level, then those of the image, as numpy applies them to a point."""
    given_ = [("scale" if scales else "translation", values) for scales, values in parts]
    found = read(
        image(
            datasets=[{"path": "0", "coordinateTransformations": moves(*given_[:cut])}],
            coordinateTransformations=moves(*given_[cut:]),
        )
    ).levels[0]
    for point in (np.zeros(2), np.array([3.0, 7.0])):
        want = point
        for kind, values in given_:
            want = want * values if kind == "scale" else want + values
        np.testing.assert_allclose(point * found.scale + found.translation, want, rtol=1e-9)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (image(datasets=None), "no datasets"),
        (image(datasets=[]), "no datasets"),
        (image(datasets={"path": "0"}), "datasets .* must be a list"),
        (image(datasets=["0"]), r"datasets\[0\] .* must be an object"),
        (image(datasets=[{}]), "no path"),
        (image(datasets=[{"path": 0}]), "no path"),
        (image(axes=None), "no axes"),
        (image(axes=[]), "no axes"),
        (image(axes=[{"type": "space"}, {"name": "x"}]), "names that differ"),
        (image(axes=["x", "x"]), "names that differ"),
        (image(axes=[{"name": 1}, {"name": "x"}]), "names that differ"),
        (image(axes=[*AXES[:1], 3]), "must be an object"),
        (image(axes=[{"name": "c"}, {"name": "d", "type": "channel"}]), "several axes of channels"),
        (image(version="0.6"), "version '0.6'"),
        (image(version=7), "version 7"),
        (image(coordinateTransformations=moves(("scale", (1, 1, 1)))), "2 numbers"),
        (image(coordinateTransformations=moves(("scale", (1, "2")))), "2 numbers"),
        (image(coordinateTransformations=moves(("scale", (1, float("nan"))))), "2 numbers"),
        (image(coordinateTransformations=moves(("scale", (1, True)))), "2 numbers"),
        (image(coordinateTransformations=moves(("scale", (1, 10**400)))), "2 numbers"),
        (image(coordinateTransformations=moves(("scale", (1, float("inf"))))), "2 numbers"),
        (image(coordinateTransformations=moves(("translation", (1,)))), "2 numbers"),
        (image(coordinateTransformations=moves(("scale", (1, 0)))), "must not be 0"),
        (image(coordinateTransformations=[{"type": "scale", "path": "s"}]), "does not read"),
        (image(coordinateTransformations=[{"type": "affine", "affine": []}]), "does not read"),
        (image(coordinateTransformations=[None]), "must be an object"),
        (image(coordinateTransformations="none"), "must be a list"),
        ("none", "must be an object"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_what_is_incomplete_is_said_in_a_sentence(entry, message):
    with pytest.raises(tw.TilingError, match=message) as caught:
        read(entry)
    assert "the group" in str(caught.value)
    assert "meta=" in str(caught.value)


@pytest.mark.parametrize("key", ["plate", "well", "labels", "series", "multiscales"])
@pytest.mark.parametrize(
    "value", [3, "a", {}, {"wells": 3, "images": 3}, [3], [None], {"wells": [{}]}], ids=str
)
def test_nothing_but_sentences(key, value):
    for attributes in ({key: value}, {"ome": {"version": "0.5", key: value}}):
        try:
            found = read_group(attributes, "the group")
        except tw.TilingError:
            continue
        assert found == OmeGroup()


WHOLE = [
    image_attributes(META, version, [level_of(META), level_of(META, "1", 2)], label=label)
    for version in ("0.4", "0.5") for label in (None, {})
] + [
    {"plate": {"wells": [{"path": "A/1"}]}, "well": {"images": [{"path": "0"}]}, "labels": ["a"]},
    {"bioformats2raw.layout": 3, "ome": {"version": "0.5", "series": ["0"]}},
]  # fmt: skip
WORDS = st.sampled_from(["", "0.4", "0.6", "name", "type", "path", "scale", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | TEXT | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner),
    max_leaves=6,
)


@given(st.sampled_from(WHOLE), st.data())
def test_any_damage_is_read_or_said(attributes, data):
    """One place of sound attributes is replaced by anything, or left out."""
    damaged = node = copy.deepcopy(attributes)
    while True:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        inner = node[key]
        if not (isinstance(inner, dict | list) and inner and data.draw(st.integers(0, 3))):
            break
        node = inner
    if isinstance(node, dict) and data.draw(st.booleans()):
        del node[key]
    else:
        node[key] = data.draw(JSON)
    with contextlib.suppress(tw.TilingError):
        for one in read_group(damaged, "the group").images:
            assert len(one.meta(len(one.levels) - 1).axes) == len(one.axes)


def test_what_writers_leave_out_is_tolerated():
    bare = read(image(version=None, axes=[{"name": "c"}, *AXES], name=3, type="mean"))
    assert bare.meta() == tw.ImageMeta("cyx")
    assert bare.kind == "mean"
    assert not bare.placed
    old = read({"version": "0.1", "datasets": [{"path": "0"}]})
    assert old.meta() == tw.ImageMeta("tczyx")
    names = read(image(version="0.3", axes=["z", "y", "x"]))
    assert names.meta() == tw.ImageMeta("zyx")
    custom = read(image(axes=[{"name": "c", "type": "lambda", "unit": ""}, *AXES]))
    assert custom.meta().types == (None, "space", "space")
    draft = read_group({"ome": {"version": "0.5-dev1", "multiscales": [image(version=None)]}}, "the group")
    assert draft.images[0].version == "0.5"
    assert read_group({}, "the group") == OmeGroup()
    assert not read_group({"ome": 3, "plate": None}, "the group")


@pytest.mark.parametrize(
    ("channels", "names", "colors"),
    [
        (None, None, None),
        ([], None, None),
        ("ab", None, None),
        ([{}, 3], None, None),
        ([{}, {}], None, None),
        ([{"label": "DAPI"}, {"label": 3}], ("DAPI", "1"), None),
        ([{"color": "ff0000"}, {"color": "#00FF00"}], None, ("FF0000", "00FF00")),
        ([{"color": "red", "label": "a"}, {"color": "00FF00"}], ("a", "1"), None),
    ],
    ids=itertools.count(),
)
def test_channels_are_read_as_far_as_they_are_sound(channels, names, colors):
    axes = [{"name": "c", "type": "channel"}, *AXES]
    meta = read(image(axes=axes), omero={"channels": channels}).meta()
    assert (meta.channel_names, meta.channel_colors) == (names, colors)
    assert read(image(), omero={"channels": channels}).meta() == tw.ImageMeta("yx")


def test_plates_wells_and_collections():
    plate = {"plate": {"wells": [{"path": "A/1"}, {"path": "B/2"}], "version": "0.4"}}
    assert read_group(plate, "").wells == ("A/1", "B/2")
    well = {"ome": {"version": "0.5", "well": {"images": [{"path": "0", "acquisition": 1}, {"path": "1"}]}}}
    assert read_group(well, "").fields == ("0", "1")
    assert read_group({"bioformats2raw.layout": 3}, "").collection
    assert read_group({"ome": {"version": "0.5", "bioformats2raw.layout": 3}}, "").collection
    assert read_group({"ome": {"version": "0.5", "series": ["0", "1"]}}, "").series == ("0", "1")
