"""Names of models: registered ones, folders, and repositories of the Hub."""

import logging
import os
import re

import timm
from timm.models import parse_model_name

from ..errors import InputError, unknown

__all__ = ['list_models', 'resolve']

log = logging.getLogger(__name__)

REPOSITORY = re.compile(r'\w[\w.-]*/\w[\w.-]*(@.+)?', re.ASCII)


def list_models() -> list[str]:
    """Lists the models of this package.

    Examples:
        >>> 'msff_resnet101' in list_models()
        True
    """
    return timm.list_models(module=['msff', 'query2label', 'ml_decoder'])


def resolve(name: str) -> str:
    """Finds what a name without a prefix means: a registered model, else an existing folder, else a repository.

    Args:
        name: Registered name (`msff_resnet101.coco2014_448`), folder (`runs/demo`; `./NAME` for one that is spelled
            like a registered model) or repository of the Hub (`ORG/NAME[@REVISION]`). A name that begins with
            `local-dir:` or `hf-hub:` is returned as it is.

    Returns:
        Name as `timm.create_model` takes it: a registered one, `local-dir:FOLDER` or `hf-hub:ORG/NAME[@REVISION]`.

    Raises:
        InputError: The name is none of these.

    Examples:
        >>> resolve('msff_resnet101'), resolve('org/name')
        ('msff_resnet101', 'hf-hub:org/name')
    """
    try:
        source, _ = parse_model_name(name)
    except ValueError as e:
        if ':' in name and not os.path.isdir(name):  # an unknown prefix, or nothing after it
            raise InputError(str(e)) from None
        is_registered = False  # timm refuses names that look like a path
    else:
        if source is not None:
            return name
        is_registered = timm.is_model(name.partition('.')[0])
    is_folder = os.path.isdir(name)
    if is_registered:
        if is_folder:
            log.warning('%s is the registered model here: write ./%s for the folder of that name.', name, name)
        return name
    if is_folder or REPOSITORY.fullmatch(name):
        resolved = f'{"local-dir" if is_folder else "hf-hub"}:{name}'
        log.debug('%s is taken as %s', name, resolved)
        return resolved
    nearest = unknown('model', name, list_models())
    raise InputError(f'{nearest} It is no registered model, no existing folder, and no ORG/NAME on the Hub.')
