"""`python -m msff_timm` runs the `msff-timm` command."""

import sys

from msff_timm_cli.commands import main

if __name__ == '__main__':
    sys.exit(main())
