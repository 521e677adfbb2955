"""Space of the Hub with the page of `msff-timm space`; the variable MSFF_MODEL names the model."""

import os

from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.inference import app

MODEL = os.environ.get('MSFF_MODEL') or hub.DEFAULT_MODEL

if __name__ == '__main__':
    try:
        app.serve(MODEL)
    except InputError as e:
        raise SystemExit(f'MSFF_MODEL={MODEL}: {e}') from None
