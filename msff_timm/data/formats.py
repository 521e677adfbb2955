"""Image file formats: which files are images, and why Pillow cannot read some of them."""

import os
import stat
import warnings
from functools import cache
from pathlib import Path

from PIL import Image, features

try:  # optional, installed by the user
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()

__all__ = ['RAW_REASON', 'explain_unknown', 'image_suffixes', 'is_image', 'is_raw']

# Data and video formats that Pillow recognises but cannot read
STUBS = {'BUFR', 'GRIB', 'HDF5', 'MPEG'}
# Formats with an unambiguous signature
SIGNED = ('AVIF', 'BMP', 'GIF', 'HEIF', 'JPEG', 'JPEG2000', 'MPO', 'PNG', 'TIFF', 'WEBP')
RAW_REASON = 'a raw file of a camera, which Pillow cannot read: convert it to JPEG or TIFF first'

HEIC_BRANDS = (b'heic', b'heix', b'hevc', b'hevx', b'heim', b'heis', b'mif1', b'msf1')
HEIC = frozenset('.heic .heif .heics .heifs .hif'.split())
AVIF = frozenset('.avif .avifs'.split())
RAW = frozenset(
    '.3fr .ari .arw .bay .cap .cr2 .cr3 .crw .dcr .dcs .dng .drf .eip .erf .fff .gpr .iiq .k25 .kdc .mdc .mef .mos .mrw'
    ' .nef .nrw .orf .pef .ptx .pxn .raf .raw .rw2 .rwl .rwz .sr2 .srf .srw .x3f'.split()
)
OTHERS = frozenset('.bpg .dcm .dicom .exr .hdp .hdr .jxl .jxr .psb .svg .svgz .wdp .xcf'.split())
HAS_AVIF = 'avif' in features.modules and features.check('avif')
DOCUMENTS = frozenset(['.pdf', '.ps'])


def is_image(path: Path) -> bool:
    """Returns whether a file is an image or a raw file of a camera, by its name or else by its content.

    Hidden files are not images, e.g. `._a.jpg`, which holds attributes of `a.jpg` on macOS.
    """
    if path.name.startswith('.') or os.path.isdir(path):
        return False
    if path.suffix.lower() in image_suffixes():
        return True
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return False
            with open(path, 'rb') as file:
                if _content(file.read(64)):
                    return True
            with Image.open(path, formats=[kind for kind in SIGNED if kind in Image.OPEN]):
                return True
        except Image.DecompressionBombError:
            return True
        except Exception:  # Pillow raises nearly every type of error on other formats
            return False


@cache
def image_suffixes() -> frozenset[str]:
    """Returns the suffixes of images and of raw files of cameras, in lower case and with the dot."""
    of_pillow = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN.keys() - STUBS}
    return (of_pillow | HEIC | AVIF | RAW | OTHERS) - DOCUMENTS


def is_raw(suffix: str) -> bool:
    """Returns whether the suffix is that of raw files of a camera."""
    return suffix.lower() in RAW


def explain_unknown(suffix: str, head: bytes) -> str:
    """Returns why Pillow cannot identify a file.

    Args:
        suffix: Suffix of the file name, with the dot.
        head: First 64 bytes of the file.
    """
    suffix = suffix.lower()
    kind = _content(head)
    if 'HEIF' not in Image.OPEN and (kind == 'HEIC' or (kind is None and suffix in HEIC)):
        return 'HEIC, which Pillow reads once pillow-heif is installed: pip install pillow-heif'
    if not HAS_AVIF and (kind == 'AVIF' or (kind is None and suffix in AVIF)):
        return 'AVIF, which Pillow reads from 11.3 on: pip install -U pillow'
    if kind == 'CR3' or suffix in RAW:
        return RAW_REASON
    if kind == 'JXL' or suffix in OTHERS:
        return f'{kind or suffix[1:].upper()}, which Pillow cannot read: convert it to PNG, TIFF or JPEG first'
    return f'a damaged {kind} file' if kind else 'not an image that Pillow can read'


def _content(head: bytes) -> str | None:
    """Returns the format that the first bytes show, among those that Pillow may lack, or None."""
    if head[4:8] == b'ftyp':
        brands = {head[place : place + 4] for place in range(8, min(int.from_bytes(head[:4], 'big'), len(head)), 4)}
        for kind, names in {'AVIF': (b'avif', b'avis'), 'CR3': (b'crx ',), 'HEIC': HEIC_BRANDS}.items():
            if brands.intersection(names):
                return kind
    if head.startswith((b'\xff\x0a', b'\0\0\0\x0cJXL ')):
        return 'JXL'
    return None
