"""File formats: what is an image, and why Pillow cannot read one."""

import os
import stat
import warnings
from pathlib import Path

from PIL import Image, features

try:  # the user's own, none of our dependencies
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()

__all__ = ['RAW_REASON', 'explain_unknown', 'is_image', 'is_raw']

# Formats that Pillow only recognises: data and video
STUBS = {'BUFR', 'GRIB', 'HDF5', 'MPEG'}
# Formats that their first bytes show without doubt
SIGNED = ('AVIF', 'BMP', 'GIF', 'HEIF', 'JPEG', 'JPEG2000', 'MPO', 'PNG', 'TIFF', 'WEBP')
RAW_REASON = "a camera's raw file, which Pillow cannot read: convert it to JPEG or TIFF first"

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
    """Whether a file is an image or a camera's raw file, by its name or, where that shows nothing, by its content.

    Hidden files are none: `._a.jpg` e.g. holds what macOS notes of `a.jpg`.
    """
    if path.name.startswith('.') or os.path.isdir(path):
        return False
    suffix = path.suffix.lower()
    if suffix in HEIC | AVIF | RAW | OTHERS or Image.registered_extensions().get(suffix) in Image.OPEN.keys() - STUBS:
        return suffix not in DOCUMENTS
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
        except Exception:  # Pillow raises nearly every kind of error on bytes of other formats
            return False


def is_raw(suffix: str) -> bool:
    """Whether a file is a camera's raw file by its name."""
    return suffix.lower() in RAW


def explain_unknown(suffix: str, head: bytes) -> str:
    """Explains why Pillow does not know a file.

    Args:
        suffix: Suffix of the file's name, with the dot.
        head: First 64 bytes.
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
    return f'not a whole {kind}' if kind else 'not an image that Pillow can read'


def _content(head: bytes) -> str | None:
    """Names a format, of those that Pillow may lack, by a file's first bytes."""
    if head[4:8] == b'ftyp':
        brands = {head[place : place + 4] for place in range(8, min(int.from_bytes(head[:4], 'big'), len(head)), 4)}
        for kind, names in {'AVIF': (b'avif', b'avis'), 'CR3': (b'crx ',), 'HEIC': HEIC_BRANDS}.items():
            if brands.intersection(names):
                return kind
    if head.startswith((b'\xff\x0a', b'\0\0\0\x0cJXL ')):
        return 'JXL'
    return None
