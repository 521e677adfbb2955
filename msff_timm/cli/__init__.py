"""The `msff-timm` command. It is installed as a package of its own: importing `msff_timm` loads PyTorch."""
