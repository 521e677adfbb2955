"""Labels in files beside each image, which photo managers read: `.txt`, and XMP with keywords (`dc:subject`)."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.parsers import expat
from xml.sax.saxutils import escape

from ..errors import InputError, one_line
from ..files import read_small

__all__ = ['FORMATS', 'Sidecars']

FORMATS = ('txt', 'xmp')
MAX_BYTES = 2**26
RDF = 'http://www.w3.org/1999/02/22-rdf-syntax-ns#'
SUBJECT = 'http://purl.org/dc/elements/1.1/ subject'
DESCRIPTION, ITEM = f'{RDF} Description', f'{RDF} li'
CONTAINERS = tuple(f'{RDF} {kind}' for kind in ('Bag', 'Seq', 'Alt'))
EMPTY_TAG = re.compile(rb"""<([^\s/>]+)(?:"[^"]*"|'[^']*'|[^"'>])*?(/>)""")  # <name attributes/>
NEW = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
""".encode()


class Sidecars:
    """Writes the sidecars of images.

    The sidecar of `photo.jpg` is `photo.txt` or `photo.xmp`; it is `photo.jpg.txt` or `photo.jpg.xmp` if several images
    share the name without the suffix. An existing `photo.jpg.xmp`, the name that darktable and digiKam use, is extended
    instead of `photo.xmp`.

    Args:
        format: `txt` or `xmp`.
        images: Paths of all images.
    """

    def __init__(self, format: str, images: Iterable[str]):
        self.format = format
        counts = Counter(os.path.splitext(image)[0] for image in images)
        self.shared = {stem for stem, count in counts.items() if count > 1}

    def write(self, image: str, labels: Sequence[str]) -> None:
        """Writes the sidecar of an image, in one step.

        A text file holds the labels on one line, with commas. An XMP file gets the keywords that it lacks; everything
        else in it stays as it is.

        Raises:
            InputError: There is another text file of this name, or the XMP file is damaged; it stays as it is.
        """
        stem = os.path.splitext(image)[0]
        path, whole = Path(f'{stem}.{self.format}'), Path(f'{image}.{self.format}')
        if stem in self.shared or (self.format == 'xmp' and whole.exists()):
            path = whole
        before = read_small(path, MAX_BYTES, self.format.upper()) if path.exists() else None
        if self.format == 'txt':
            after = f'{", ".join(labels)}\n'.encode()
            if before not in (None, after):
                raise InputError(f'{path}: holds other text, which is kept: remove it to write these labels.')
        else:
            after = _add_keywords(path, before, labels)
        if after == before:
            return
        temporary = path.with_name(f'.{path.name}.tmp')  # of a fixed name: after a kill, the next run replaces it
        temporary.write_bytes(after)
        if before is not None:
            shutil.copymode(path, temporary)
        os.replace(temporary, path)


def _add_keywords(path: Path, content: bytes | None, keywords: Sequence[str]) -> bytes | None:
    """Adds keywords to the content of an XMP file. The text is inserted: parsers do not keep all of a file."""
    try:
        found = _Keywords(content or NEW)
    except (expat.ExpatError, UnicodeDecodeError) as e:
        raise InputError(f'{path}: is no valid XMP ({one_line(e)}), and is kept: repair or remove it.') from None
    missing = [keyword for keyword in keywords if keyword not in found.keywords]
    return found.add(missing) if missing else content


class _Keywords:
    """The keywords of an XMP file, and the places where others are inserted.

    Attributes:
        keywords: Text of the items of `dc:subject`.
    """

    def __init__(self, content: bytes):
        content.decode()
        self.content = content
        self.keywords: list[str] = []
        self._places: dict[str, tuple[int, int]] = {}  # start and end of the first elements of each kind
        self._open: list[tuple[str, int]] = []
        self._text: list[str] = []
        self._parser = expat.ParserCreate(namespace_separator=' ')
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = lambda text: self._text.append(text)
        self._parser.Parse(content, True)
        if 'description' not in self._places:
            raise expat.ExpatError('no rdf:Description')

    def _start(self, name: str, attributes: dict) -> None:
        self._open.append((name, self._parser.CurrentByteIndex))
        self._text.clear()

    def _end(self, name: str) -> None:
        _, start = self._open.pop()
        names = [name for name, _ in self._open]
        place = start, self._parser.CurrentByteIndex
        if name == ITEM and SUBJECT in names:
            self.keywords.append(''.join(self._text).strip())
        elif name in CONTAINERS and names[-1:] == [SUBJECT]:
            self._places.setdefault('container', place)
        elif name == SUBJECT:
            self._places.setdefault('subject', place)
        elif name == DESCRIPTION and DESCRIPTION not in names:
            self._places.setdefault('description', place)

    def add(self, keywords: Sequence[str]) -> bytes:
        """Returns the content with further keywords."""
        prefix = re.match(rb'<([^\s/>]*?)Description', self.content[self._places['description'][0] :])[1].decode()
        text = ''.join(f'<{prefix}li>{escape(keyword)}</{prefix}li>' for keyword in keywords)
        kind = next(kind for kind in ('container', 'subject', 'description') if kind in self._places)
        if kind != 'container':
            text = f'<{prefix}Bag>{text}</{prefix}Bag>'
        if kind == 'description':
            text = f'<dc:subject xmlns:dc="{SUBJECT.split()[0]}">{text}</dc:subject>'
        start, end = self._places[kind]
        new = text.encode()
        if tag := EMPTY_TAG.match(self.content, start):
            new, start, end = b'>' + new + b'</' + tag[1] + b'>', tag.start(2), tag.end(2)
            return self.content[:start] + new + self.content[end:]
        return self.content[:end] + new + b'\n' + self.content[end:]
