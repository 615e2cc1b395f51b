"""DICOM against pydicom's own lookup tables and windows, Pillow's colours and files that say what they hold."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openjepa.data import decode, identify
from openjepa.data import dicom as module
from openjepa.data.decode import DecodeError, open_image, read_header
from openjepa.data.depth import settle
from openjepa.data.inspect import describe_data, describe_pages, describe_windows, look_at
from openjepa.data.left_out import describe_left_out
from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.sources import folder, open_source
from openjepa.recipe.sections import Data

pytest.importorskip("pydicom")
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing
from pydicom.sequence import Sequence

NAME = "Zyxwvutq^Jane"


def make(pixels: np.ndarray, kind: str = "MONOCHROME2", *, bits: int = 12, frames: int = 1, **elements: object) -> Dataset:
    """A data set of samples (frames, height, width) or (height, width, 3); elements by keyword."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid.generate_uid()
    dataset.PatientName, dataset.PatientID = NAME, NAME
    is_colour = kind not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    dataset.Rows, dataset.Columns = pixels.shape[:2] if is_colour else pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3 if is_colour else 1, kind
    if is_colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = min(bits, dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if frames > 1:
        dataset.NumberOfFrames = frames
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = pixels.tobytes()
    return dataset


def write(dataset: Dataset, path: Path) -> str:
    dataset.save_as(path, enforce_file_format=True)
    return str(path)


def read(path: str, channels: int = 1, reading: Reading = AS_STORED, page_idx: int = 0) -> np.ndarray:
    pixels = open_image(path, channels, reading, page_idx).decode()
    return pixels[:, :, 0] if channels == 1 else pixels


def draw(dtype: type = np.uint16, bits: int = 12, shape: tuple[int, ...] = (20, 24)) -> np.ndarray:
    low, high = (0, 2**bits) if np.dtype(dtype).kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def lookup(entries: np.ndarray, first: int, bits: int) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return Sequence([item])


def levels(shown: np.ndarray, black: float, white: float, kind: str) -> np.ndarray:
    share = (shown - black) / (white - black)
    return 255 * (1 - share if kind == "MONOCHROME1" else share)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("rescale", [None, (1, 0), (1, -1024), (0.25, 7.5)])
@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_are_pydicoms(tmp_path, kind, dtype, rescale, function):
    elements = {"WindowCenter": [40, 300], "WindowWidth": [400, 1500]}
    if rescale:
        elements |= {"RescaleSlope": rescale[0], "RescaleIntercept": rescale[1]}
    if function:
        elements |= {"VOILUTFunction": function}
    dataset = make(draw(dtype), kind, **elements)
    path = write(dataset, tmp_path / "a.dcm")
    stored = dataset.pixel_array
    shown = apply_voi_lut(apply_modality_lut(stored, dataset), dataset)
    black, white = apply_windowing(np.array([-1e9, 1e9]), dataset)
    np.testing.assert_allclose(read(path), levels(shown, black, white, kind), atol=0.5 + 1e-3)
    assert read_header(path).depth == "uint8"


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [8, 10, 16])
@pytest.mark.parametrize("has_modality", [False, True])
def test_tables_are_pydicoms(tmp_path, kind, bits, has_modality):
    curve = (np.linspace(0, 1, 3000) ** 2 * (2**bits - 1)).round().astype(int)
    dataset = make(draw(), kind, VOILUTSequence=lookup(curve, 200, bits), WindowCenter=5, WindowWidth=9)
    if has_modality:
        dataset.ModalityLUTSequence = lookup(np.arange(4096)[::-1], 0, 16)
    path = write(dataset, tmp_path / "a.dcm")
    values = apply_modality_lut(dataset.pixel_array, dataset)
    shown = curve[np.clip(values.astype(int) - 200, 0, 2999)]
    if bits > 8:  # whose indices pydicom 3.0 keeps in a byte
        np.testing.assert_array_equal(apply_voi_lut(values, dataset), shown)
    np.testing.assert_allclose(read(path), levels(shown, 0, 2**bits - 1, kind), atol=0.5 + 1e-3)


def test_without_a_window_one_scale_serves_the_set_and_so_it_does_where_windows_are_ignored(tmp_path):
    for number in range(4):
        write(make(draw(bits=8 + number)), tmp_path / f"{number}.dcm")
    settled, source, lines = settle(Data(channels=1), open_source(str(tmp_path), 1))
    assert settled.white_level == 2**11 - 1 and "4 uint16" in lines[0]
    np.testing.assert_allclose(source.load(0)[:, :, 0], draw(bits=8) / 2047 * 255, atol=0.5001)
    for number in range(4):
        stated = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 50 + number, "WindowWidth": 100}
        write(make(draw(), **stated), tmp_path / f"{number}.dcm")
    source = open_source(str(tmp_path), 1)
    assert settle(Data(channels=1), source)[0].white_level is None  # their own windows serve
    (line,) = describe_windows(source)
    assert line.startswith("4 of 4 DICOM files looked at are shown by their own window, 4 different")
    ignoring = Reading(white=400.0, black=-1000.0, window="ignore")
    units = draw().astype(float) - 1024
    expected = np.clip((units + 1000) / 1400, 0, 1) * 255
    np.testing.assert_allclose(read(str(tmp_path / "0.dcm"), reading=ignoring), expected, atol=0.5001)
    assert describe_windows(open_source(str(tmp_path), 1, ignoring)) == []
    measured = settle(Data(channels=1, window="ignore"), open_source(str(tmp_path), 1, Reading(window="ignore")))[0]
    assert measured.black_level == pytest.approx(units.min(), abs=15)
    assert measured.white_level == pytest.approx(units.max(), abs=15)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("has_window", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_padding_is_darkest_and_changes_nothing_else(tmp_path, kind, has_window, dtype):
    pixels = draw(dtype, 7)
    pixels[:5] = pixels[5, 5]
    window = {"WindowCenter": 30, "WindowWidth": 80} if has_window else {}
    reading = AS_STORED if has_window else Reading(100.0, -100.0)
    whole = read(write(make(pixels, kind, bits=8, **window), tmp_path / "a.dcm"), reading=reading)
    padded = make(pixels, kind, bits=8, PixelPaddingValue=int(pixels[5, 5]), **window)
    shown = read(write(padded, tmp_path / "b.dcm"), reading=reading)
    is_padding = pixels == pixels[5, 5]
    assert not shown[is_padding].any()
    np.testing.assert_array_equal(shown[~is_padding], whole[~is_padding])


def test_bits_in_bytes(tmp_path):
    few = make(draw(np.uint8, 4), bits=4)
    np.testing.assert_array_equal(read(write(few, tmp_path / "a.dcm")), draw(np.uint8, 4) * 17)
    mask = draw(np.uint8, 1, (16, 24))
    dataset = make(mask, bits=1)
    dataset.BitsAllocated = 1
    dataset.PixelData = np.packbits(mask.ravel(), bitorder="little").tobytes()
    np.testing.assert_array_equal(read(write(dataset, tmp_path / "b.dcm")), mask * 255)
    plain = make(draw(np.uint8, 8), bits=8, RescaleSlope="1", RescaleIntercept="0")
    np.testing.assert_array_equal(read(write(plain, tmp_path / "c.dcm")), draw(np.uint8, 8))


def test_frames_are_pages(tmp_path):
    frames = draw(shape=(5, 20, 24))
    write(make(frames, frames=5, WindowCenter=2048, WindowWidth=4096), tmp_path / "a.dcm")
    source = open_source(str(tmp_path), 1)
    assert len(source) == 1 and "5 to 5 pages" in describe_pages(source)[0]
    source = open_source(str(tmp_path), 1, Reading(pages="all"))
    assert len(source) == 5 and source.path(4).endswith("a.dcm#page=5")
    for number in range(5):
        np.testing.assert_allclose(source.load(number)[:, :, 0], frames[number] / 4095 * 255, atol=0.5001)
    with pytest.raises(DecodeError, match="5 frames"):
        read(str(tmp_path / "a.dcm"), page_idx=5)
    write(make(frames[0], NumberOfFrames=10**9), tmp_path / "a.dcm")
    assert len(open_source(str(tmp_path), 1, Reading(pages="all"))) == 1
    np.testing.assert_allclose(read(str(tmp_path / "a.dcm"), reading=Reading(4095.0)), frames[0] / 4095 * 255, atol=0.5001)


def test_frames_of_enhanced_files_have_rescaling_and_window_of_their_own(tmp_path):
    frames, groups = draw(shape=(3, 20, 24)), []
    for number in range(3):
        window, values, group = Dataset(), Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = 100 * number, 1000
        values.RescaleSlope, values.RescaleIntercept = 1 + number, -500
        group.FrameVOILUTSequence, group.PixelValueTransformationSequence = Sequence([window]), Sequence([values])
        groups.append(group)
    enhanced = write(make(frames, frames=3, PerFrameFunctionalGroupsSequence=Sequence(groups)), tmp_path / "a.dcm")
    shared = Sequence([groups[2]])
    every = write(make(frames, frames=3, SharedFunctionalGroupsSequence=shared), tmp_path / "b.dcm")
    for number in range(3):
        for path, of in ((enhanced, number), (every, 2)):
            stated = {"WindowCenter": 100 * of, "WindowWidth": 1000, "RescaleSlope": 1 + of, "RescaleIntercept": -500}
            plain = write(make(frames[number], **stated), tmp_path / "c.dcm")
            np.testing.assert_array_equal(read(path, page_idx=number), read(plain))


def test_colours(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read(write(make(pixels, "RGB", bits=8), tmp_path / "a.dcm"), 3), pixels)
    planes = make(pixels, "RGB", bits=8, PlanarConfiguration=1)
    planes.PixelData = pixels.transpose(2, 0, 1).tobytes()
    np.testing.assert_array_equal(read(write(planes, tmp_path / "b.dcm"), 3), pixels)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(read(str(tmp_path / "a.dcm"), 1), grey)
    smooth = np.asarray(Image.fromarray(pixels[:4, :4]).resize((24, 20), Image.Resampling.BICUBIC))
    converted = np.asarray(Image.fromarray(smooth).convert("YCbCr"))
    shown = read(write(make(converted, "YBR_FULL", bits=8), tmp_path / "c.dcm"), 3)
    assert np.abs(shown.astype(int) - np.asarray(Image.fromarray(converted, "YCbCr").convert("RGB"))).max() <= 2
    deep = (pixels.astype(np.uint16) * 16)[..., :3]
    shown = read(write(make(deep, "RGB", bits=12), tmp_path / "d.dcm"), 3)
    np.testing.assert_allclose(shown, deep / 4095 * 255, atol=0.5001)
    odd = make(pixels, "RGB", bits=8)
    odd.PhotometricInterpretation = "HSV"
    with pytest.raises(DecodeError, match="HSV"):
        read(write(odd, tmp_path / "e.dcm"), 3)


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes(tmp_path, bits):
    table = np.random.default_rng(0).integers(0, 2**bits, (256, 3)).astype(f"u{bits // 8}")
    dataset = make(draw(np.uint8, 8), "PALETTE COLOR", bits=8)
    for number, colour in enumerate(("Red", "Green", "Blue")):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", np.ascontiguousarray(table[:, number]).tobytes())
    path = write(dataset, tmp_path / "a.dcm")
    expected = table[draw(np.uint8, 8)] / (2**bits - 1) * 255
    np.testing.assert_allclose(read(path, 3), expected, atol=0.5001)
    assert read_header(path).channels == 3


def compressed(syntax: uid.UID, encoded: bytes, pixels: np.ndarray, kind: str) -> Dataset:
    dataset = make(pixels, kind, bits=8)
    dataset.PixelData = encapsulate([encoded])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def test_compressions_that_can_be_decoded(tmp_path):
    pixels = draw(np.uint8, 8)
    packed = make(draw(), WindowCenter=2048, WindowWidth=4096)
    packed.compress(uid.RLELossless)
    np.testing.assert_allclose(read(write(packed, tmp_path / "a.dcm")), draw() / 4095 * 255, atol=0.5001)
    for syntax, kind, options in ((uid.JPEGBaseline8Bit, "JPEG", {}), (uid.JPEG2000Lossless, "JPEG2000", {"no_jp2": True})):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        path = write(compressed(syntax, buffer.getvalue(), pixels, "MONOCHROME2"), tmp_path / "b.dcm")
        np.testing.assert_array_equal(read(path), np.asarray(Image.open(io.BytesIO(buffer.getvalue()))))


@pytest.mark.parametrize(
    "syntax", [uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.HTJ2KLossless, uid.MPEG2MPML, uid.DeflatedExplicitVRLittleEndian]
)
def test_compressions_that_cannot_are_named(tmp_path, syntax):
    dataset = compressed(syntax, bytes(64), draw(np.uint8, 8), "MONOCHROME2")
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        dataset = make(draw(np.uint8, 8))
        dataset.file_meta.TransferSyntaxUID = syntax
    with pytest.raises(DecodeError, match="is a DICOM file (compressed|encoded) as") as caught:
        read(write(dataset, tmp_path / "a.dcm"))
    assert syntax.name in caught.value.reason


def test_what_holds_no_picture_or_too_large_a_one_is_refused_unread(tmp_path):
    bomb = make(np.zeros((2, 2), np.uint16), Rows=65535, Columns=65535)
    with pytest.raises(DecodeError, match="65535 x 65535 pixels"):
        read(write(bomb, tmp_path / "a.dcm"))
    report = make(np.zeros((2, 2), np.uint16))
    for keyword in ("Rows", "Columns", "PixelData", "PhotometricInterpretation"):
        delattr(report, keyword)
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = uid.BasicTextSRStorage
    with pytest.raises(DecodeError, match="without a picture.*SR") as caught:
        read(write(report, tmp_path / "b.dcm"))
    assert NAME not in str(caught.value)


def test_what_a_file_says_of_itself_is_shown_in_one_line(tmp_path):
    whole = write(make(draw()), tmp_path / "a.dcm")
    content = Path(whole).read_bytes()
    syntax = uid.ExplicitVRLittleEndian.encode()
    Path(whole).write_bytes(content.replace(syntax, syntax[:-4] + b"\n\x1b[2", 1))
    with pytest.raises(DecodeError) as caught:
        read(whole)
    assert str(caught.value).isprintable(), str(caught.value)


def test_files_of_every_name_are_found_and_tables_of_contents_are_not(tmp_path):
    for name in ("a.dcm", "b.DICOM", "IM000001", "1.2.840.113619.2.55.3", "deeper/IMG7"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(make(draw()), tmp_path / name)
    for name in ("DICOMDIR", "notes.txt"):
        write(make(draw()), tmp_path / name)
    (tmp_path / "README").write_text("none")
    source = open_source(str(tmp_path), 1)
    assert len(source) == 5 and all(source.load(number).shape == (20, 24, 1) for number in range(5))
    assert next(describe_data(source, np.arange(5))).endswith("5 images (4 .dcm, 1 .dicom)")
    assert "2 without extension" in describe_left_out(source)[0]
    assert look_at(str(tmp_path)).channels == 1


def test_without_pydicom_one_line_says_what_to_install(tmp_path, monkeypatch):
    extensions = decode.EXTENSIONS - set(module.EXTENSIONS)
    monkeypatch.setattr(folder, "EXTENSIONS", extensions)
    monkeypatch.setattr(module, "has_dicom", lambda: False)
    write(make(draw()), tmp_path / "a.dcm")
    write(make(draw()), tmp_path / "IM1")
    with pytest.raises(ValueError, match=r"2 \.dcm \(DICOM, read with pip install 'openjepa\[dicom\]'\)"):
        open_source(str(tmp_path), 1)
    Image.fromarray(draw(np.uint8, 8)).save(tmp_path / "b.png")
    (line,) = describe_left_out(open_source(str(tmp_path), 1))
    assert "2 .dcm (DICOM, read with pip install 'openjepa[dicom]')" in line
    for call in (read, read_header):
        with pytest.raises(DecodeError, match=r"openjepa\[dicom\]"):
            call(str(tmp_path / "IM1"))


def test_data_without_the_preamble_are_named(tmp_path):
    dataset = make(draw())
    del dataset.file_meta
    dataset.save_as(tmp_path / "a.dcm", implicit_vr=False, little_endian=True)
    assert "without the preamble" in identify.identify(str(tmp_path / "a.dcm"))
    with pytest.raises(DecodeError, match="without the preamble"):
        read(str(tmp_path / "a.dcm"))


@settings(max_examples=60, deadline=None)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
    keep=st.floats(0.3, 1),
    is_packed=st.booleans(),
)
def test_damaged_bytes_give_pixels_or_a_decode_error_and_name_nobody(tmp_path_factory, changes, keep, is_packed):
    dataset = make(draw(), WindowCenter=1000, WindowWidth=500, RescaleSlope=2, RescaleIntercept=-3)
    if is_packed:
        dataset.compress(uid.RLELossless)
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    path = Path(write(dataset, folder / "a.dcm"))
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[132 + int(place**2 * (len(data) - 132))] = value
    path.write_bytes(data[: 132 + int(keep * (len(data) - 132))])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        calls = (read, read_header, lambda _: open_source(str(folder), 1, Reading(pages="all")))
        said = [_words_of(call, str(path)) for call in calls]
    assert not [words for words in said if NAME in words or "\n" in words]
    assert not [warning for warning in told if NAME in str(warning.message)]


def _words_of(call: Callable[[str], object], path: str) -> str:
    try:
        call(path)
    except ValueError as error:
        return str(error)
    return ""
