import os
import xml.etree.ElementTree as ET

import pytest

from msff_timm.errors import InputError
from msff_timm.inference.sidecars import Sidecars

RDF = '{http://www.w3.org/1999/02/22-rdf-syntax-ns#}'
DC = '{http://purl.org/dc/elements/1.1/}'
DECLARED = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/"'

# As Lightroom, darktable and digiKam write them, in short
LIGHTROOM = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0">
 <rdf:RDF {DECLARED}>
  <rdf:Description rdf:about="" xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
    crs:Exposure2012="+0.35" crs:Note="a &gt; b/>&#xA;second line"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
DARKTABLE = f"""<?xml version="1.0" encoding="UTF-8"?>
<!-- made by a user -->
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {DECLARED}>
  <rdf:Description rdf:about="" xmlns:darktable="http://darktable.sf.net/" darktable:history_end="7">
   <dc:subject><rdf:Seq><rdf:li>Zürich</rdf:li>
     <rdf:li>cat</rdf:li></rdf:Seq></dc:subject>
   <darktable:history><rdf:Seq><rdf:li darktable:operation="exposure"/></rdf:Seq></darktable:history>
  </rdf:Description>
</rdf:RDF></x:xmpmeta>
"""
DIGIKAM = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {DECLARED}>
<rdf:Description rdf:about=""><dc:subject><rdf:Bag/></dc:subject></rdf:Description>
<rdf:Description rdf:about="" xmlns:d="http://www.digikam.org/ns/1.0/"><d:TagsList/></rdf:Description>
</rdf:RDF></x:xmpmeta>"""
OTHER_PREFIX = f'<RDF xmlns="{RDF[1:-1]}"><Description><s xmlns="{DC[1:-1]}"/></Description></RDF>'


def keywords(path) -> list[str]:
    root = ET.fromstring(path.read_bytes())
    found = root.findall(f'.//{RDF}Description/{DC}subject')
    assert len(found) == 1 and len(found[0]) == 1
    return [item.text for item in found[0][0].findall(f'{RDF}li')]


def test_sidecars_create_xmp(tmp_path):
    Sidecars('xmp', []).write(f'{tmp_path}/photo.jpg', ['dog', 'R&B <x>', '猫'])
    assert os.listdir(tmp_path) == ['photo.xmp'] and keywords(tmp_path / 'photo.xmp') == ['dog', 'R&B <x>', '猫']
    Sidecars('xmp', []).write(f'{tmp_path}/empty.jpg', [])
    assert os.listdir(tmp_path) == ['photo.xmp']


@pytest.mark.parametrize(
    ('before', 'known'),
    [(LIGHTROOM, []), (DARKTABLE, ['Zürich', 'cat']), (DIGIKAM, []), (OTHER_PREFIX, []), ('\ufeff' + DARKTABLE, None)],
)
def test_sidecars_add_keywords_to_xmp_and_keep_the_rest(tmp_path, before, known):
    path = tmp_path / 'photo.xmp'
    path.write_bytes(before.encode())
    path.chmod(0o600)
    known = ['Zürich', 'cat'] if known is None else known
    Sidecars('xmp', []).write(f'{tmp_path}/photo.jpg', ['cat', 'a & b'])
    assert keywords(path) == [*known, *(name for name in ('cat', 'a & b') if name not in known)]
    after = path.read_text()
    # Without the longest common start and end, only an insertion is left; `<name/>` may have become `<name></name>`.
    start = len(os.path.commonprefix([before, after]))
    end = len(os.path.commonprefix([before[start:][::-1], after[start:][::-1]]))
    assert before[start : len(before) - end] in ('', '/') and path.stat().st_mode & 0o777 == 0o600
    Sidecars('xmp', []).write(f'{tmp_path}/photo.jpg', ['cat'])
    assert path.read_text() == after and os.listdir(tmp_path) == ['photo.xmp']


@pytest.mark.parametrize('content', [b'<x>', b'<x/>', DARKTABLE.encode('utf-16'), DARKTABLE.encode()[:-40]])
def test_sidecars_keep_damaged_xmp(tmp_path, content):
    (tmp_path / 'photo.xmp').write_bytes(content)
    with pytest.raises(InputError, match='photo.xmp: is no valid XMP .*, and is kept'):
        Sidecars('xmp', []).write(f'{tmp_path}/photo.jpg', ['cat'])
    assert (tmp_path / 'photo.xmp').read_bytes() == content and os.listdir(tmp_path) == ['photo.xmp']


def test_sidecars_choose_names_that_images_do_not_share(tmp_path):
    images = [f'{tmp_path}/{name}' for name in ('a.jpg', 'a.png', 'b.jpg', 'c.d.jpg')]
    for image in images:
        Sidecars('txt', images).write(image, [image[-5:], 'dog'])
    assert sorted(os.listdir(tmp_path)) == ['a.jpg.txt', 'a.png.txt', 'b.txt', 'c.d.txt']
    assert (tmp_path / 'b.txt').read_text() == 'b.jpg, dog\n'.replace('b.jpg', images[2][-5:])
    (tmp_path / 'b.jpg.xmp').write_text(DARKTABLE)
    Sidecars('xmp', images).write(images[2], ['dog'])
    assert keywords(tmp_path / 'b.jpg.xmp') == ['Zürich', 'cat', 'dog'] and not (tmp_path / 'b.xmp').exists()


def test_sidecars_keep_other_text(tmp_path):
    (tmp_path / 'a.txt').write_text('my notes')
    with pytest.raises(InputError, match='a.txt: holds other text, which is kept'):
        Sidecars('txt', []).write(f'{tmp_path}/a.jpg', ['cat'])
    assert (tmp_path / 'a.txt').read_text() == 'my notes'
