"""The `msff-timm` command. It is installed as a package of its own, because importing `msff_timm` loads PyTorch."""
