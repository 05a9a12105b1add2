"""A card as one more member of a `.keras` file, which is a zip archive.

The card has the digest of every other member. So it is known if weights,
ledger or configuration of the file changed after the card was written. It is no
signature: who can write the file can write another card.
"""

import hashlib
import pathlib
import shutil
import zipfile

from tf_dpfp.training import durable_files

# The member's name; Keras asks an archive for the names that it knows.
MEMBER = "privacy_card.json"
_KNOWN = "config.json"


def check(path: pathlib.Path) -> None:
    """Refuses a path that is no model of Keras.

    Args:
        path: The path.

    Raises:
        ValueError: If so.
    """
    if not path.is_file():
        raise ValueError(
            f"There is no file '{path}' to put a privacy card into or to read "
            "one from. Save the model first: model.save(path)."
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if _KNOWN in archive.namelist():
                return
    raise ValueError(
        f"'{path}' is no .keras file. Save the model with a path that ends in "
        ".keras; a card can't be put into weights alone, or into an .h5 file."
    )


def digests(path: pathlib.Path) -> dict[str, str]:
    """Computes the digest of every member but the card.

    Args:
        path: Path of a `.keras` file.

    Returns:
        From names of members to their SHA-256.
    """
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename != MEMBER and not info.is_dir():
                with archive.open(info) as member:
                    digest = hashlib.file_digest(member, "sha256")  # type: ignore[arg-type]
                found[info.filename] = digest.hexdigest()
    return found


def put(path: pathlib.Path, text: str) -> None:
    """Puts a card into a file, in the place of an earlier one.

    Args:
        path: Path of a `.keras` file.
        text: The member's text.
    """
    # The file itself, and no link to it, gives way to the new one.
    path = path.resolve()

    def write(beside: pathlib.Path) -> None:
        with zipfile.ZipFile(path) as archive:
            is_first = MEMBER not in archive.namelist()
            if not is_first:
                _copy_without_card(archive, beside)
        if is_first:
            # Byte for byte, and quicker.
            shutil.copyfile(path, beside)
        with zipfile.ZipFile(beside, "a") as archive:
            archive.writestr(MEMBER, text)
        shutil.copymode(path, beside)

    durable_files.replace(path, write)


def _copy_without_card(archive: zipfile.ZipFile, beside: pathlib.Path) -> None:
    with zipfile.ZipFile(beside, "w") as copy:
        for info in archive.infolist():
            if info.filename == MEMBER:
                continue
            with archive.open(info) as old:
                with copy.open(info, "w", force_zip64=True) as new:
                    shutil.copyfileobj(old, new, 1 << 24)


def take(path: pathlib.Path) -> str | None:
    """Takes the text of a card out of a file.

    Args:
        path: Path of a `.keras` file.

    Returns:
        The text; `None` if there is none.
    """
    with zipfile.ZipFile(path) as archive:
        if MEMBER not in archive.namelist():
            return None
        return archive.read(MEMBER).decode("utf-8")
