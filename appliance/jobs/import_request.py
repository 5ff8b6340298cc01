"""A base model's import as it is asked for over the API: which uploaded files, under which names."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from typing import Annotated

import msgspec
from msgspec import Meta

from appliance import durable
from appliance.errors import InvalidInput
from appliance.jobs import base_import
from appliance.records import StoredFile
from appliance.store.rows import new_id
from appliance.store.store import Store
from appliance.upload_records import BaseImport

# What uploaded files of models have to be for.
PURPOSE = "model"
MAX_FILES = 1024
MAX_TEMPLATE_CHARACTERS = 1 << 20
# They become names on disk.
_FILENAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,254}")


class ImportRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`files` are ids of uploaded ones: one GGUF, or all of a Hugging Face directory."""

    name: str
    licence: Annotated[str, Meta(min_length=1, max_length=256)]
    origin: Annotated[str, Meta(min_length=1, max_length=1024)]
    files: Annotated[list[str], Meta(min_length=1, max_length=MAX_FILES)]
    chat_template: Annotated[str, Meta(max_length=MAX_TEMPLATE_CHARACTERS)] | None = None


def create(store: Store, request: ImportRequest) -> BaseImport:
    """Store what is wanted; the files may be deleted from now on.

    Raises InvalidInput for names and files that cannot be, NotFound for those that are not there, WrongState
    if an alias has the name.
    """
    base_import.check_name(request.name)
    store.catalog.check_base_name(request.name)
    files = [store.files.get(file_id) for file_id in request.files]
    _check_files(files)
    wanted = BaseImport(
        id=new_id("import-"),
        created_at=int(time.time()),
        name=request.name,
        licence=request.licence,
        origin=request.origin,
        chat_template=request.chat_template,
        filenames=tuple(file.filename for file in files),
    )
    directory = store.imports_directory / wanted.id
    directory.mkdir()
    try:
        durable.fsync_path(store.imports_directory)
        for file in files:
            store.files.link_content(file, directory / file.filename)
        store.imports.add(wanted)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return wanted


def remove_leftovers(store: Store) -> None:
    """Files of imports that have ended; blocks, and must not run beside `create`."""
    unfinished = {each.id for each in store.imports.unfinished()}
    for directory in store.imports_directory.iterdir():
        if directory.name not in unfinished:
            shutil.rmtree(directory, ignore_errors=True)


def _check_files(files: list[StoredFile]) -> None:
    faults = [
        f"{file.id} is for {file.purpose!r}, and not for {PURPOSE!r}"
        for file in files
        if file.purpose != PURPOSE
    ]
    faults += [
        f"{file.id} should have a plain name of letters, digits, . _ + -; it is {file.filename!r}"
        for file in files
        if not _FILENAME.fullmatch(file.filename)
    ]
    names = Counter(file.filename for file in files)
    faults += [f"{count} files are called {name!r}" for name, count in names.items() if count > 1]
    if faults:
        raise InvalidInput(
            "invalid_model_files",
            "the files cannot be those of a model: " + "; ".join(faults),
            param="files",
            next_step="upload them under the publisher's names",
        )
